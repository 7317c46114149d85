# shellcheck shell=sh
# Arch, as far as it can be had on Debian: its package manager is a stand-in, and what it would install is here.
apt-get install -y -qq runc wireguard-tools iproute2 python3
printf 'ID=arch\nPRETTY_NAME="Arch Linux"\n' >/root/os-release
rm /etc/os-release
cp /root/os-release /etc/os-release
printf '#!/bin/sh\nexit 0\n' >/usr/bin/pacman
chmod 755 /usr/bin/pacman
getent group faas >/dev/null || groupadd --system faas
fetch "$SITE/install.sh" >/root/install.sh
names >/tmp/before
sh /root/install.sh
installed_files_are_right
sh /root/install.sh
echo mine >/var/lib/faasd/mine
sh /root/install.sh --uninstall
[ -f /var/lib/faasd/mine ] || fail "--uninstall deletes data"
sh /root/install.sh --uninstall --purge
names >/tmp/after
left=$(comm -13 /tmp/before /tmp/after | grep faas || true)
[ -z "$left" ] || fail "this is left: $left"
[ -f /etc/wireguard/server_private.key ] || fail "--purge deletes the server's key"
