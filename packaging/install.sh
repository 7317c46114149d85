#!/bin/sh
# Installs faasd, the daemon, and faas, its client:
#
#   curl -fsSL https://faasd.github.io/faasd/install.sh | sudo sh
#
# Nothing is changed before the release's signature and checksums have been verified, and nothing runs before the last
# line of this file, all of it, has arrived. `sh install.sh --help` lists the options.
set -eu

BASE_URL=${FAASD_BASE_URL:-https://faasd.github.io/faasd}

# Written by `cargo xtask publish`: whose signature counts (more than one while a key is being replaced), and what is
# installed without --version.
FINGERPRINTS=
VERSION=

# What is written where, at most, in megabytes.
NEED_TMP=150
NEED_SYSTEM=250

# What a machine without packages gets, and --uninstall removes.
MANIFEST=/usr/lib/faasd/installed-files

usage() {
    cat <<TEXT
Installs faasd on Debian, Ubuntu, Fedora, RHEL, CentOS and Arch (x86_64, aarch64), and brings it up to date.

Usage: sh install.sh [OPTIONS]          as root; when piped: … | sudo sh -s -- [OPTIONS]

  --version V        install this version [default: ${VERSION:-none in this copy}]
  --base-url URL     where releases are [default: $BASE_URL]
  --offline DIR      take everything from DIR, an unpacked air-gapped tarball or release; no network is used
  --fingerprint F    trust the key with this fingerprint, and no other
  --dry-run          fetch and verify, say what would be done, change nothing
  --uninstall        remove faasd; settings, data and keys stay
  --purge            with --uninstall: remove settings, data and peers, too; the server's keys stay
  --help             this text

Examples:
  sh install.sh --dry-run
  sh install.sh --offline ./faasd-0.1.0-airgap-amd64
  sh install.sh --uninstall --purge
TEXT
}

say() { printf '%s\n' "$*"; }
step() { printf '\n[%s/6] %s\n' "$1" "$2"; }
have() { command -v "$1" >/dev/null 2>&1; }

# die WHAT [REMEDY]…
die() {
    printf '\ninstall.sh: error: %s\n' "$1" >&2
    shift
    for remedy in "$@"; do printf '  %s\n' "$remedy" >&2; done
    [ "$TOUCHED" = yes ] || printf '  Nothing has been changed.\n' >&2
    exit 1
}

mistake() {
    printf 'install.sh: error: %s\n  sh install.sh --help lists the options.\n' "$1" >&2
    exit 2
}

# Carries out a command, or with --dry-run shows it.
run() {
    say "  + $*"
    [ "$DRY_RUN" = yes ] || "$@"
}

main() {
    OFFLINE='' WANTED='' ACTION=install PURGE=no DRY_RUN=no TOUCHED=no TMP=''
    while [ $# -gt 0 ]; do
        case $1 in
        --version | --base-url | --offline | --fingerprint)
            [ -n "${2:-}" ] || mistake "$1 wants a value"
            option "$1" "$2"
            shift
            ;;
        --version=* | --base-url=* | --offline=* | --fingerprint=*)
            [ -n "${1#*=}" ] || mistake "${1%%=*} wants a value"
            option "${1%%=*}" "${1#*=}"
            ;;
        --dry-run) DRY_RUN=yes ;;
        --uninstall) ACTION=uninstall ;;
        --purge) PURGE=yes ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) mistake "unknown option: $1" ;;
        esac
        shift
    done
    [ "$PURGE" = no ] || [ "$ACTION" = uninstall ] || mistake "--purge goes with --uninstall"
    # Packages' scripts need the directories that a user's PATH often lacks.
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
    export PATH DEBIAN_FRONTEND=noninteractive
    umask 022

    step 1 "What machine this is"
    detect
    if [ "$ACTION" = uninstall ]; then
        uninstall
        return
    fi
    step 2 "Whether it can be installed here"
    prepare
    step 3 "The release"
    get_release
    step 4 "Its signature and checksums"
    verify_signature
    get_files
    step 5 "Installation"
    [ "$DRY_RUN" = yes ] || TOUCHED=yes
    "install_$FAMILY"
    step 6 "What is here now"
    finish
}

option() {
    case $1 in
    --version) WANTED=${2#v} ;;
    --base-url) BASE_URL=${2%/} ;;
    --offline) OFFLINE=$2 ;;
    --fingerprint) FINGERPRINTS=$(printf %s "$2" | tr -d ' ' | tr '[:lower:]' '[:upper:]') ;;
    esac
    case $WANTED in *[!0-9A-Za-z.~+-]*) mistake "--version $WANTED is no version: write it like 0.1.0" ;; esac
}

# The value of a variable of os-release, which is a shell's assignments.
os_release() {
    # shellcheck disable=SC1091 # the system's file
    (set +u; . /etc/os-release 2>/dev/null && eval "printf %s \"\${$1:-}\"") || true
}

detect() {
    [ "$(uname -s)" = Linux ] || die "this is $(uname -s), and faasd runs on Linux"
    machine=$(uname -m)
    case $machine in
    x86_64 | amd64) ARCH=amd64 MACHINE=x86_64 ;;
    aarch64 | arm64) ARCH=arm64 MACHINE=aarch64 ;;
    *) die "there is no release for $machine" "Build it from the sources: make && make install ($BASE_URL)" ;;
    esac
    kernel=$(uname -r)
    case $kernel in
    [0-5].* | 6.0.*)
        say "  Linux $kernel: the daemon needs 6.1 or later; the client does not"
        ;;
    esac
    NAME=$(os_release PRETTY_NAME)
    FAMILY=''
    # ID_LIKE lists the nearest first.
    for id in $(os_release ID) $(os_release ID_LIKE); do
        case $id in
        debian | ubuntu) FAMILY=debian ;;
        fedora | rhel | centos) FAMILY=fedora ;;
        arch) FAMILY=arch ;;
        *) continue ;;
        esac
        break
    done
    say "  ${NAME:-a Linux without /etc/os-release}, $MACHINE"
    [ -n "$FAMILY" ] || die "install.sh does not know this system: '$(os_release ID)' in /etc/os-release" \
        "It knows Debian, Ubuntu, Fedora, RHEL, CentOS, Arch, and those like them." \
        "Elsewhere take faasd-VERSION-$MACHINE-linux.tar.gz, or the sources with their Makefile, from $BASE_URL"
}

prepare() {
    case $FAMILY in
    debian) tools="apt-get dpkg-deb" ;;
    fedora) if have dnf; then tools=dnf; else tools=yum; fi ;;
    arch) tools="pacman tar" ;;
    esac
    for tool in $tools sha256sum; do have "$tool" || die "there is no $tool here, which it takes"; done
    DNF=$tools
    is_root
    TMPDIR=${TMPDIR:-/tmp}
    enough_space "$TMPDIR" "$NEED_TMP" "set TMPDIR to a directory with more"
    for directory in /usr /var; do enough_space "$directory" "$NEED_SYSTEM" "make room there"; done
    case $TMPDIR in *[[:space:]]*) die "apt takes no directory with a space in its name: '$TMPDIR'" "Set TMPDIR to another." ;; esac
    TMP=$(mktemp -d "$TMPDIR/faasd-install.XXXXXXXX") || die "cannot make a directory in $TMPDIR"
    trap 'rm -rf "$TMP"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    for VERIFIER in sqv gpg gpgv none; do if have "$VERIFIER"; then break; fi; done
    [ "$VERIFIER" != none ] || die "nothing here can verify a signature" "Install one of: sqv, gnupg, gpgv"
    [ -n "$FINGERPRINTS" ] || die "this copy of install.sh does not say whose signature to trust" \
        "Take the one that is published: $BASE_URL/install.sh" "Or give the key's fingerprint: --fingerprint"
    if [ -n "$OFFLINE" ]; then
        [ -d "$OFFLINE" ] || die "there is no directory $OFFLINE"
    else
        case $BASE_URL in
        https://* | http://*) ;;
        *) die "$BASE_URL is no URL: it begins with https://, or with http:// within a network of yours" ;;
        esac
        have curl || have wget || die "there is neither curl nor wget here" "Install one of them, or use --offline"
    fi
    say "  yes; signatures are verified by $VERIFIER"
}

is_root() {
    [ "$(id -u)" = 0 ] && return
    [ "$DRY_RUN" = yes ] || die "this is to be run as root" "sudo sh install.sh; when piped: … | sudo sh" \
        "To see what it would do: --dry-run"
}

# enough_space DIRECTORY MEGABYTES REMEDY
enough_space() {
    free=$(df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1024) }')
    [ -n "$free" ] || die "cannot see how much space there is in $1"
    [ "$free" -ge "$2" ] || die "not enough space in $1: it takes $2 MB, and $free MB are free" "So $3."
}

# fetch NAME: from the release to $TMP
fetch() {
    if [ -n "$OFFLINE" ]; then
        [ -f "$OFFLINE/$1" ] || die "there is no $1 in $OFFLINE" "Is it an unpacked release, and for this machine?"
        cp "$OFFLINE/$1" "$TMP/$1" || die "cannot copy $1 to $TMP"
        return
    fi
    url=$BASE_URL/$VERSION/$1
    say "  $url"
    if have curl; then
        # Without TLS only where the URL says so: what counts is the signature.
        case $BASE_URL in https://*) only='=https' ;; *) only='=http,https' ;; esac
        curl -fsSL --retry 3 --connect-timeout 20 --proto "$only" --tlsv1.2 -o "$TMP/$1" "$url"
    else
        wget -q --tries=3 --timeout=20 -O "$TMP/$1" "$url"
    fi || die "cannot fetch $url" "Does that version exist, and is the network up? --offline DIR does without."
}

get_release() {
    VERSION=${WANTED:-$VERSION}
    if [ -z "$OFFLINE" ] && [ -z "$VERSION" ]; then
        die "this copy of install.sh does not say what version to install" "Say it: --version 0.1.0"
    fi
    for file in SHA256SUMS SHA256SUMS.sig faasd-archive-keyring.gpg; do fetch "$file"; done
    if [ -n "$OFFLINE" ] && [ -z "$WANTED" ]; then
        VERSION=$(sed -n "s/^[0-9a-f]*  faasd_\\(.*\\)_$ARCH\\.deb\$/\\1/p" "$TMP/SHA256SUMS" | tail -n 1)
        [ -n "$VERSION" ] || die "the release in $OFFLINE has nothing for $MACHINE"
    fi
    say "  faasd $VERSION"
}

# Prints the fingerprints of the keys whose signature is good, and of no others.
signers() {
    case $VERIFIER in
    sqv) sqv --keyring "$TMP/faasd-archive-keyring.gpg" "$TMP/SHA256SUMS.sig" "$TMP/SHA256SUMS" ;;
    gpg)
        mkdir -m 700 "$TMP/gnupg"
        gpg --homedir "$TMP/gnupg" --batch --no-tty --no-autostart --no-default-keyring \
            --keyring "$TMP/faasd-archive-keyring.gpg" --trust-model always --status-fd 1 \
            --verify "$TMP/SHA256SUMS.sig" "$TMP/SHA256SUMS" >"$TMP/status" || return 1
        primary_keys
        ;;
    gpgv)
        gpgv --keyring "$TMP/faasd-archive-keyring.gpg" --status-fd 1 \
            "$TMP/SHA256SUMS.sig" "$TMP/SHA256SUMS" >"$TMP/status" || return 1
        primary_keys
        ;;
    esac
}

primary_keys() { sed -n 's/^\[GNUPG:\] VALIDSIG .* \([0-9A-F]*\)$/\1/p' "$TMP/status"; }

verify_signature() {
    if ! found=$(signers 2>"$TMP/said"); then
        sed 's/^/  /' "$TMP/said" >&2
        die "the signature of SHA256SUMS is wrong" "What was fetched is not what was released, or not all of it."
    fi
    signer=''
    for key in $found; do
        case " $FINGERPRINTS " in *" $key "*) signer=$key ;; esac
    done
    [ -n "$signer" ] || die "SHA256SUMS is signed by another key: ${found:-none}" "It should be: $FINGERPRINTS"
    say "  SHA256SUMS is signed by $signer"
}

# The files that are installed: FILE is faasd's own.
get_files() {
    case $FAMILY in
    debian) FILE=faasd_${VERSION}_$ARCH.deb ;;
    fedora) FILE=faasd-$VERSION-1.$MACHINE.rpm ;;
    arch) FILE=faasd-$VERSION-$MACHINE-linux.tar.gz ;;
    esac
    get_file "$FILE"
    [ -n "$OFFLINE" ] || return 0
    # Debian's packages that ours depends on, where it has none of its own.
    if [ "$FAMILY" = debian ]; then
        sed -n 's/^[0-9a-f]*  \(.*\.deb\)$/\1/p' "$TMP/SHA256SUMS" >"$TMP/debs"
        while read -r other; do
            if [ "$other" != "$FILE" ] && [ -f "$OFFLINE/$other" ]; then get_file "$other"; fi
        done <"$TMP/debs"
    fi
    if [ "$FAMILY" = arch ] && ! have runc && [ -f "$OFFLINE/runc" ]; then get_file runc; fi
}

get_file() {
    case $1 in */* | -*) die "SHA256SUMS names a file that it may not: $1" ;; esac
    sum=$(awk -v name="$1" '$2 == name { print $1 }' "$TMP/SHA256SUMS")
    [ -n "$sum" ] || die "the release has no $1" "Is there a $VERSION for $MACHINE?"
    fetch "$1"
    is=$(sha256sum "$TMP/$1" | cut -d ' ' -f 1)
    [ "$is" = "$sum" ] || die "$1 is damaged: its checksum is $is, and $sum is signed" "Fetch it again."
    say "  $1 is what was released"
}

install_debian() {
    set -- -o DPkg::Lock::Timeout=120 -o APT::Sandbox::User=root
    if [ -z "$OFFLINE" ]; then
        run apt-get install -y -q "$@" "$TMP/$FILE" ||
            die "apt-get failed: see above" "Should a package not be found: apt-get update, first."
        return
    fi
    # apt chooses what it needs from an index of the verified files, and keeps what is installed and newer.
    for deb in "$TMP"/*.deb; do
        dpkg-deb -f "$deb"
        printf 'Filename: %s\nSize: %s\nSHA256: %s\n\n' "${deb##*/}" "$(wc -c <"$deb")" \
            "$(sha256sum "$deb" | cut -d ' ' -f 1)"
    done >"$TMP/Packages"
    printf 'deb [trusted=yes] file:%s ./\n' "$TMP" >"$TMP/sources.list"
    mkdir -p "$TMP/lists/partial"
    set -- "$@" -o Dir::Etc::SourceList="$TMP/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$TMP/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    run apt-get update -q "$@" || die "apt-get cannot read the packages in $OFFLINE: see above"
    run apt-get install -y -q "$@" "faasd=$VERSION" || die "apt-get failed: see above"
}

install_fedora() {
    set -- "$DNF" install -y
    [ -z "$OFFLINE" ] || set -- "$@" --disablerepo='*'
    run "$@" "$TMP/$FILE" || die "$DNF failed: see above" "runc, wireguard-tools and iproute are to be there."
}

install_arch() {
    if [ -f "$TMP/runc" ]; then
        run install -m 755 "$TMP/runc" /usr/local/bin/runc
    elif [ -z "$OFFLINE" ]; then
        run pacman -S --needed --noconfirm runc wireguard-tools iproute2 || die "pacman failed: see above"
    fi
    top=${FILE%.tar.gz}
    say "  + the files of $FILE"
    [ "$DRY_RUN" = no ] || return 0
    mkdir -p "$TMP/tree" "${MANIFEST%/*}"
    tar -xzf "$TMP/$FILE" -C "$TMP/tree" --no-same-owner
    # Settings are the administrator's.
    [ ! -e /etc/faasd/faasd.toml ] || rm -f "$TMP/tree/$top/etc/faasd/faasd.toml"
    (cd "$TMP/tree/$top" && find usr ! -type d | sort | sed 's|^|/|') >"$TMP/manifest"
    for part in usr etc; do
        [ ! -d "$TMP/tree/$top/$part" ] || cp -R --remove-destination "$TMP/tree/$top/$part/." "/$part/"
    done
    # What an earlier version had, and this one has not.
    if [ -f "$MANIFEST" ]; then grep -Fxv -f "$TMP/manifest" "$MANIFEST" | xargs -r rm -f; fi
    cp "$TMP/manifest" "$MANIFEST"
    if have systemd-sysusers; then systemd-sysusers faasd.conf; fi
    faasd init || die "faasd cannot begin: see above"
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl enable faasd.socket faasd.service
        systemctl restart faasd.service
    fi
}

finish() {
    if [ "$DRY_RUN" = yes ]; then
        say "  Nothing has been changed: this was a dry run."
        return
    fi
    found=$(faasd --version) || die "faasd does not run here: see above"
    [ "$found" = "faasd $VERSION" ] || die "$found is installed, not $VERSION" "Is there another one in the PATH?"
    say "  $found"
    say "  To see what this machine has and lacks: faas doctor"
}

uninstall() {
    is_root
    step 2 "What is here"
    package=none
    if [ -f "$MANIFEST" ]; then
        package=files
    elif [ "$FAMILY" = debian ] && dpkg-query -W -f '${db:Status-Status}' faasd 2>/dev/null | grep -qv not-installed; then
        package=deb
    elif [ "$FAMILY" = fedora ] && rpm -q faasd >/dev/null 2>&1; then
        package=rpm
    fi
    say "  faasd: $package"
    step 3 "Removal"
    if [ "$package" = rpm ] && [ "$PURGE" = no ]; then
        die "removing an .rpm removes its data as well" "If that is what you want: --uninstall --purge"
    fi
    [ "$DRY_RUN" = yes ] || TOUCHED=yes
    case $package-$PURGE in
    deb-no) run apt-get remove -y -q -o DPkg::Lock::Timeout=120 faasd ;;
    deb-yes) run apt-get purge -y -q -o DPkg::Lock::Timeout=120 faasd ;;
    rpm-yes) run rpm -e faasd ;;
    files-*) remove_files ;;
    none-*) say "  nothing to do" ;;
    esac || die "the removal failed: see above"
    # Also what a removal without --purge has left earlier.
    if [ "$PURGE" = yes ] && [ "$package" != deb ]; then
        run rm -rf --one-file-system /var/lib/faasd /var/lib/faas /etc/wireguard/peers /etc/faasd
    fi
    say "  The server's keys in /etc/wireguard stay: clients know this machine by them."
}

remove_files() {
    if [ -d /run/systemd/system ]; then
        run systemctl disable --now faasd.service faasd.socket faasd-functions.service faasd-forwarding.service || true
    fi
    if [ -e /run/faasd/ingress ]; then run faasd teardown; fi
    for membership in /var/lib/faas/*.json; do
        [ -e "$membership" ] || continue
        name=${membership##*/}
        run faas vpn disconnect --interface "${name%.json}" || true
    done
    say "  + the files in $MANIFEST"
    [ "$DRY_RUN" = no ] || return 0
    xargs rm -f <"$MANIFEST"
    rm -f "$MANIFEST"
    rmdir --ignore-fail-on-non-empty "${MANIFEST%/*}"
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
}

{ main "$@"; }
