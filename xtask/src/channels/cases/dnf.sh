#!/bin/sh
# dnf, with signatures of packages and lists required, into a root that has programs and no database of rpm's. What the
# package depends on has Fedora's names, which a stand-in provides.
set -eu
repositories=$ROOT/tmp/repositories
mkdir -p "$repositories"
cp "$SHARE/site/faasd.repo" "$repositories"
printf '[stand-in]\nname=stand-in\nbaseurl=file://%s/stand-in\ngpgcheck=0\n' "$SHARE" >"$repositories/stand-in.repo"
chroot "$ROOT" apt-get install -y -qq runc wireguard-tools iproute2 >/dev/null
install() {
    dnf -y --quiet --installroot="$ROOT" --releasever=9 --setopt=reposdir="$repositories" \
        --setopt=cachedir="$ROOT/tmp/cache" --setopt=module_platform_id=platform:el9 --setopt=persistdir="$ROOT/tmp/dnf" \
        --setopt=install_weak_deps=False "$@"
}
sed -i 's|/site/rpm|/bad/pool/rpm|' "$repositories/faasd.repo"
if install install faasd >"$ROOT/tmp/said" 2>&1; then echo "dnf takes a package that was changed"; exit 1; fi
tail -n 2 "$ROOT/tmp/said"
[ ! -e "$ROOT/usr/bin/faasd" ] || { echo "it is installed"; exit 1; }
rm -rf "$ROOT/tmp/cache"
sed -i 's|/bad/pool/rpm|/site/rpm|' "$repositories/faasd.repo"
install install faasd
chroot "$ROOT" faasd --version
rpm --root "$ROOT" -q faasd
[ "$(stat -c %a "$ROOT/etc/wireguard/server_private.key")" = 600 ]
rpm --root "$ROOT" -e faasd
[ ! -e "$ROOT/usr/bin/faasd" ] && [ ! -e "$ROOT/var/lib/faasd" ] && [ -f "$ROOT/etc/wireguard/server_private.key" ]
