# shellcheck shell=sh
# apt, from the signed repository: as the manual says.
add_repository
documented apt | tail -n 1 >/run/install
sh -e /run/install
installed_files_are_right
a_function_answers
