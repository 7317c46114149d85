# shellcheck shell=sh
# apt, from the signed repository: as the manual says.
add_repository
documented apt | tail -n 1 >/run/install
sh -e /run/install
installed_files_are_right
a_function_answers
# Of each release of Debian, what it thinks of the units.
apt-get install -y -qq --no-install-recommends systemd >/dev/null
systemd-analyze verify --man=no /usr/lib/systemd/system/faasd* 2>/tmp/said || fail "systemd-analyze: $(cat /tmp/said)"
! grep -i faasd /tmp/said || fail "systemd-analyze has remarks"
