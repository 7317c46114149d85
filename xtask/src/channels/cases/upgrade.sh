# shellcheck shell=sh
# A package's life: the version before, this one, removal, purge.
names >/tmp/before
add_repository
previous=$(cat /srv/share/previous)
apt-get install -y -qq "faasd=$previous"
[ "$(version_of_deb)" = "$previous" ] || fail "$(version_of_deb) was installed"
key=$(cat /etc/wireguard/server_private.key)
echo mine >/var/lib/faasd/mine
echo '# mine' >>/etc/faasd/faasd.toml
echo peer >/etc/wireguard/peers/mine

apt-get install -y -qq faasd
[ "$(version_of_deb)" != "$previous" ] || fail "it was not upgraded"
[ "$(cat /etc/wireguard/server_private.key)" = "$key" ] || fail "the upgrade changed the key"
grep -q '# mine' /etc/faasd/faasd.toml || fail "the upgrade changed settings"
[ -f /var/lib/faasd/mine ] || fail "the upgrade deleted data"

apt-get remove -y -qq faasd
[ ! -e /usr/bin/faasd ] || fail "the removal leaves the daemon"
for file in /var/lib/faasd/mine /etc/wireguard/peers/mine /etc/faasd/faasd.toml /etc/wireguard/server_private.key; do
    [ -f "$file" ] || fail "the removal deleted $file"
done
apt-get purge -y -qq faasd
for file in /var/lib/faasd /etc/wireguard/peers /etc/faasd; do
    [ ! -e "$file" ] || fail "the purge leaves $file"
done
[ "$(cat /etc/wireguard/server_private.key)" = "$key" ] || fail "the purge changed the key"

# But for the keys, the system is what it was with its dependencies.
names >/tmp/after
comm -13 /tmp/before /tmp/after | grep -E 'faas' >/tmp/said || true
grep -Ev '^(/etc/apt/keyrings/faasd.asc|/etc/apt/sources.list.d/faasd.sources)$' /tmp/said &&
    fail "this is left"
[ -f /etc/wireguard/server_public.key ] || fail "the public key is gone"
