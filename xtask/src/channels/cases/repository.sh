# shellcheck shell=sh
# What apt refuses: another key, and a package that was changed.
add_repository
sed -i 's|/site/apt|/bad/repository/apt|' /etc/apt/sources.list.d/faasd.sources
rm -rf /var/lib/apt/lists/127.0.0.1*
! apt-get update -o APT::Update::Error-Mode=any >/tmp/said 2>&1 || fail "apt takes what another key has signed"
! apt-get install -y -qq faasd >/tmp/said 2>&1 || fail "apt installs what another key has signed"

sed -i 's|/bad/repository/apt|/bad/pool/apt|' /etc/apt/sources.list.d/faasd.sources
apt-get update -qq
! apt-get install -y -qq faasd >/tmp/said 2>&1 || fail "apt installs a package that was changed"
grep -Eq 'Hash Sum mismatch|unexpected size|Hashes' /tmp/said || fail "apt does not say why: $(cat /tmp/said)"
[ ! -e /usr/bin/faasd ] || fail "it is installed"
