#!/bin/sh
# After the files are gone. dpkg calls it with `remove`, later perhaps with `purge`, and with other words around an upgrade;
# rpm with how many versions stay. A removal keeps all data; a purge, and rpm's erasure, which is final, delete it. The
# server's keys stay in any case: clients know the machine by them.
set -e

delete_data() {
    # A file system that is still mounted below is somebody's data, too.
    rm -rf --one-file-system /var/lib/faasd /var/lib/faas /etc/wireguard/peers /run/faasd
    rmdir --ignore-fail-on-non-empty /etc/faasd 2>/dev/null || true
}

if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi

case "${1:-}" in
remove)
    if command -v deb-systemd-helper >/dev/null; then
        deb-systemd-helper mask faasd.service faasd.socket >/dev/null || true
    fi
    rm -rf --one-file-system /run/faasd
    ;;
purge)
    if command -v deb-systemd-helper >/dev/null; then
        deb-systemd-helper purge faasd.service faasd.socket >/dev/null || true
        deb-systemd-helper unmask faasd.service faasd.socket >/dev/null || true
    fi
    delete_data
    ;;
0) delete_data ;;
esac
