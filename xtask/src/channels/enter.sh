#!/bin/sh
# Run by `unshare` in namespaces of its own: a throw-away root over BASE, with its own network, which has a loopback and a
# web server, and nothing else.
#
#   enter.sh BASE SCRATCH SHARE CASE
set -eu
base=$1 scratch=$2 share=$3 case=$4
root=$scratch/root

mount --make-rprivate /
mkdir -p "$scratch/upper" "$scratch/work" "$root"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
mount -t proc proc "$root/proc"
# A package's sysctl settings are the whole machine's, where they are not the network's.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/tmp"
# A whole one: without it the kernel lets no container have its own.
mkdir "$root/run/proc"
mount -t proc proc "$root/run/proc"
# Not an overlay, which maps no owners: images are for file systems that a disk has.
mkdir -p "$scratch/disk" "$root/srv/disk"
mount --bind "$scratch/disk" "$root/srv/disk"
mkdir -p "$root/srv/share"
mount --bind "$share" "$root/srv/share"
mount -o remount,bind,ro "$root/srv/share"

ip link set lo up
# In a mount namespace of its own: this one's root is about to be another.
unshare --mount python3 -m http.server 80 --bind 127.0.0.1 --directory "$share" >/dev/null 2>&1 &
tries=0
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 80))' 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "the web server does not answer" >&2; exit 1; }
done

case $(basename "$case") in
# dnf is this machine's: it installs into the root.
dnf.sh) ROOT=$root SHARE=$share exec sh "$case" ;;
esac
cp "$case" "$root/tmp/.case"
cp "$(dirname "$case")/lib.sh" "$root/tmp/.lib"
# Not by chroot: who is in one may make no user namespace, and containers have one.
cd "$root"
mkdir .old
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive TERM=dumb \
    sh -c 'cd /root && . /tmp/.lib && rm /tmp/.lib && . /tmp/.case'
