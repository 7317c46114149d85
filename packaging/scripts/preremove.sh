#!/bin/sh
# Before the files go. dpkg calls it with `remove`, `upgrade VERSION`, `deconfigure …` or `failed-upgrade …`; rpm with how
# many versions stay. Only a removal ends anything: an upgraded daemon takes over from the one before it.
set -e

case "${1:-}" in
remove | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
    # faasd-functions.service ends what serves without the daemon: instances, the tunnel, the kernel program.
    units="faasd.service faasd.socket faasd-functions.service faasd-forwarding.service"
    if command -v deb-systemd-invoke >/dev/null; then
        # shellcheck disable=SC2086 # one word for each unit
        deb-systemd-invoke stop $units >/dev/null || true
    else
        # shellcheck disable=SC2086 # one word for each unit
        systemctl --no-reload disable --now $units >/dev/null 2>&1 || true
    fi
fi

# The same where no systemd runs. Without a network namespace of ours no daemon has served here.
if [ -e /run/faasd/ingress ] && ! faasd teardown; then
    echo "faasd: not everything was ended; stop what still runs, or restart the machine" >&2
fi

# This machine may be a client of another, too: its interface, the process behind it, and who resolves its names.
for membership in /var/lib/faas/*.json; do
    [ -e "$membership" ] || continue
    name=${membership##*/}
    faas vpn disconnect --interface "${name%.json}" >/dev/null || true
done
