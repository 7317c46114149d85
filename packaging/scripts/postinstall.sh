#!/bin/sh
# After the files are in place. dpkg calls it with `configure [VERSION-BEFORE]`, or `abort-…` after something failed; rpm
# with how many versions are installed now. Whatever it does may have been done before.
set -e

case "${1:-}" in
configure) if [ -n "${2:-}" ]; then action=upgrade; else action=install; fi ;;
abort-upgrade | abort-remove | abort-deconfigure) action=upgrade ;;
1) action=install ;;
[2-9]*) action=upgrade ;;
*)
    echo "faasd: postinstall was called with '${1:-}'" >&2
    exit 1
    ;;
esac

# Members use the API as root may.
if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers faasd.conf
elif ! getent group faas >/dev/null; then
    groupadd --system faas
fi

# Directories, the server's keys, the zone: by the code that the daemon would do it with.
ready=yes
if ! faasd init; then
    echo "faasd: this is to be put right first; then: systemctl restart faasd" >&2
    ready=no
fi

# Debian remembers what the administrator has enabled and masked; elsewhere presets say what a new service is.
if command -v deb-systemd-helper >/dev/null; then
    for unit in faasd.service faasd.socket; do
        deb-systemd-helper unmask "$unit" >/dev/null || true
        if deb-systemd-helper --quiet was-enabled "$unit"; then
            deb-systemd-helper enable "$unit" >/dev/null || true
        else
            deb-systemd-helper update-state "$unit" >/dev/null || true
        fi
    done
elif [ "$action" = install ] && command -v systemctl >/dev/null; then
    systemctl --no-reload preset faasd.service faasd.socket >/dev/null 2>&1 || true
fi

# Not in a chroot, where this would change the machine around it.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    if [ "$ready" = yes ]; then
        # Functions, tunnel and open connections do not notice that the daemon is another one.
        if command -v deb-systemd-invoke >/dev/null; then
            deb-systemd-invoke restart faasd.service >/dev/null || true
        elif systemctl --quiet is-enabled faasd.service; then
            systemctl restart faasd.service || true
        fi
    fi
fi

if [ "$action" = install ]; then
    cat <<'TEXT'

faasd is installed. What comes next:

  1. Say how clients reach this machine, in /etc/faasd/faasd.toml:
       endpoint = "vpn.example.org"
     then: systemctl reload faasd
  2. See whether the machine has everything:
       faas doctor
  3. Make, deploy and call a function:
       faas new hello && faas deploy hello ./hello && faas invoke hello
  4. Let another machine in (UDP port 51820 must be open here):
       faas vpn invite laptop

Who is to use faas without sudo: usermod -aG faas USER. It is as good as being root.

TEXT
fi
