# shellcheck shell=sh
# install.sh from the site: dry, in earnest, again, and away.
refuses 0 "this was a dry run" sh -c "$(fetch "$SITE/install.sh")" install.sh --dry-run
if command -v curl >/dev/null; then
    documented script >/run/install
    sh -e /run/install
else
    fetch "$SITE/install.sh" | sh
fi
installed_files_are_right
fetch "$SITE/install.sh" | sh -s -- --version "$(version_of_deb)"
a_function_answers
key=$(cat /etc/wireguard/server_private.key)
echo mine >/var/lib/faasd/mine
fetch "$SITE/install.sh" | sh -s -- --uninstall
[ ! -e /usr/bin/faasd ] || fail "--uninstall leaves the daemon"
[ -f /var/lib/faasd/mine ] || fail "--uninstall deletes data"
fetch "$SITE/install.sh" | sh -s -- --uninstall --purge
fetch "$SITE/install.sh" | sh -s -- --uninstall --purge
[ ! -e /var/lib/faasd ] || fail "--purge leaves data"
[ "$(cat /etc/wireguard/server_private.key)" = "$key" ] || fail "--purge changes the server's key"
