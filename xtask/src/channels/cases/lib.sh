# shellcheck shell=sh
# What the cases have in common. Each runs as root in a fresh system of Debian, at /srv/share the site and its bad copies.
set -eu

SITE=http://127.0.0.1/site

fail() {
    echo "FAILED: $*"
    exit 1
}

# Every file, directory and link of the system, but for logs and caches.
listing() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /var/cache -o -path /var/log \
        -o -path /srv -o -path /tmp/.case -o -path /tmp/before -o -path /tmp/after -o -path /tmp/said \) -prune \
        -o \( -type d -printf '%p %y %m %U:%G\n' -o -printf '%p %y %m %U:%G %s %T@ %l\n' \)
    # A file system of its own here.
    find /tmp -mindepth 1 ! -name .case ! -name before ! -name after ! -name said
}

# The names of what is there, without what apt, dpkg and systemd write for themselves.
names() {
    listing | sed 's/ .*//' | grep -Ev '^/var/lib/(apt|dpkg|systemd|ucf)|^/etc/(ld\.so\.cache|\.pwd\.lock)' | sort
}

# refuses STATUS TEXT COMMAND…: it fails so, says so, and has changed nothing.
refuses() {
    status=$1 text=$2
    shift 2
    listing | sort >/tmp/before
    got=0
    "$@" >/tmp/said 2>&1 </dev/null || got=$?
    listing | sort >/tmp/after
    [ "$got" = "$status" ] || fail "'$*' ended with $got, not $status: $(cat /tmp/said)"
    grep -qF -- "$text" /tmp/said || fail "'$*' does not say '$text': $(cat /tmp/said)"
    cmp -s /tmp/before /tmp/after || fail "'$*' changed something: $(diff /tmp/before /tmp/after)"
    echo "refused: $text"
}

# As a person would: into the shell, by whichever of the two is here.
fetch() {
    if command -v curl >/dev/null; then curl -fsSL "$1"; else wget -q -O - "$1"; fi
}

# The commands that docs/INSTALL.md has for a channel, as it has them; but the site is the one here, and who runs them is root.
documented() {
    sed -n "/^\`\`\`sh install=$1\$/,/^\`\`\`\$/p" /srv/share/INSTALL.md |
        sed -e '/^```/d' -e "s|https://faasd.github.io/faasd|$SITE|" -e 's/sudo //' >/run/documented
    [ -s /run/documented ] || fail "docs/INSTALL.md says nothing of $1"
    cat /run/documented
}

# All of them but the last, which installs.
add_repository() {
    if command -v curl >/dev/null; then
        documented apt | sed '$d' >/run/add
        sh -e /run/add
    else
        mkdir -p /etc/apt/keyrings
        fetch "$SITE/faasd-archive-keyring.asc" >/etc/apt/keyrings/faasd.asc
        fetch "$SITE/faasd.sources" >/etc/apt/sources.list.d/faasd.sources
        apt-get update -qq
    fi
}

version_of_deb() { dpkg-query -W -f '${Version}' faasd; }

installed_files_are_right() {
    [ "$(stat -c %a /etc/wireguard/server_private.key)" = 600 ] || fail "the private key can be read by others"
    [ "$(wg pubkey </etc/wireguard/server_private.key)" = "$(cat /etc/wireguard/server_public.key)" ] ||
        fail "the keys are no pair"
    [ -f /etc/faasd/faasd.toml ] || fail "there are no settings"
    getent group faas >/dev/null || fail "there is no group faas"
    faasd --version
    faas version
}

# The daemon begins, a function is deployed and answers. With a file, on that image: the system itself has no python3.
a_function_answers() {
    image=${1:-}
    set --
    faasd serve >/tmp/faasd.log 2>&1 &
    daemon=$!
    deadline=$(($(date +%s) + 60))
    until faas ls >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || fail "the daemon ended: $(cat /tmp/faasd.log)"
        [ "$(date +%s)" -lt "$deadline" ] || fail "the daemon does not answer: $(tail -n 30 /tmp/faasd.log)"
    done
    faas new hello >/dev/null
    if [ -n "$image" ]; then
        faas image import "$image" --name python3
        set -- --image python3
    fi
    faas deploy hello ./hello "$@" || fail "deploy: $(tail -n 30 /tmp/faasd.log)"
    faas invoke hello || fail "invoke: $(tail -n 30 /tmp/faasd.log)"
    faas rm hello
    kill "$daemon"
    wait "$daemon" || true
    faasd teardown
    rm -rf hello /tmp/faasd.log
}
