# shellcheck shell=sh
# Without a network or a source of packages: from the air-gapped tarball, or from a release where the rest is installed.
directory=/srv/share/airgap
if [ -d "$directory" ]; then
    for there in runc wg python3; do
        ! command -v "$there" >/dev/null || fail "there is a $there already"
    done
    image=$(ls "$directory"/python3-*.tar.gz)
else
    echo "the release has no air-gapped tarball: what faasd depends on is installed beforehand"
    apt-get install -y -qq runc wireguard-tools iproute2 python3
    directory=/srv/share/release image=''
    set -- --fingerprint "$(cat /srv/share/fingerprint)"
fi
mkdir -p /var/lib/faasd
mount --bind /srv/disk /var/lib/faasd
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /srv/debian
ip link set lo down 2>/dev/null || true
sh "$directory/install.sh" --offline "$directory" "$@"
installed_files_are_right
# Its network is the machine itself.
ip link set lo up
a_function_answers "$image"
