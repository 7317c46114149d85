# shellcheck shell=sh
# What install.sh refuses, and that nothing has changed then.
fetch "$SITE/install.sh" >/root/install.sh
install() { sh /root/install.sh "$@"; }

refuses 2 "unknown option: --verison" install --verison 1
refuses 2 "--purge goes with --uninstall" install --purge
refuses 1 "cannot fetch $SITE/9.9.9/SHA256SUMS" install --version 9.9.9
refuses 1 "is no URL" install --base-url ftp://127.0.0.1
refuses 1 "is damaged: its checksum is" install --base-url http://127.0.0.1/bad/package
refuses 1 "is damaged: its checksum is" install --base-url http://127.0.0.1/bad/half
refuses 1 "the signature of SHA256SUMS is wrong" install --base-url http://127.0.0.1/bad/checksum
refuses 1 "the signature of SHA256SUMS is wrong" install --base-url http://127.0.0.1/bad/signature
refuses 1 "SHA256SUMS is signed by another key" install --base-url http://127.0.0.1/bad/key

as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups sh /tmp/install.sh "$@"; }
cp /root/install.sh /tmp/install.sh
refuses 1 "this is to be run as root" as_nobody
rm /tmp/install.sh

mkdir /small
mount -t tmpfs -o size=1m tmpfs /small
small() { TMPDIR=/small sh /root/install.sh; }
refuses 1 "not enough space in /small" small
umount /small

cp -L /etc/os-release /root/os-release
rm /etc/os-release
printf 'ID=plan9\nPRETTY_NAME="Plan 9"\n' >/etc/os-release
refuses 1 "install.sh does not know this system: 'plan9'" install
cp /root/os-release /etc/os-release

# However much of it has arrived.
length=$(wc -c </root/install.sh)
listing | sort >/tmp/before
for cut in 1 100 $((length / 4)) $((length / 2)) $((length * 3 / 4)) $((length - 40)) $((length - 12)) \
    $((length - 9)) $((length - 5)) $((length - 3)); do
    head -c "$cut" /root/install.sh | sh -s -- --version 9.9.9 >/tmp/said 2>&1 || true
    ! grep -q '^\[1/6\]' /tmp/said || fail "$cut of $length bytes of it do something: $(cat /tmp/said)"
done
listing | sort >/tmp/after
cmp -s /tmp/before /tmp/after || fail "half a script changed something: $(diff /tmp/before /tmp/after)"
