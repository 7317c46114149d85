//! The package's life on a machine with systemd: installed, used through the kernel's WireGuard, restarted and upgraded under
//! load, hung, killed, rebooted, removed, purged.

use super::life::Step::{self, Reboot, Run};

pub const INSTALLED: &[Step] = &[
    Run(
        "a router tells the machine that it is one",
        concat!(
            "ip netns add router; ip link add ra0 type veth peer name ra1 netns router; ip link set ra0 up; ip -n router link set ra1 up; ",
            "advertise() { ip netns exec router python3 -S -c 'import socket, struct; s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58); ",
            "s.setsockopt(41, socket.IPV6_MULTICAST_HOPS, 255); ",
            "s.sendto(struct.pack(\"!BBHBBHII\", 134, 0, 0, 64, 0, 1800, 0, 0), (\"ff02::1\", 0, 0, socket.if_nametoindex(\"ra1\")))' && ",
            "ip -6 route show default proto ra | grep .; }; soon advertise; test \"$(sysctl -n net.ipv6.conf.all.forwarding)\" = 0",
        ),
    ),
    Run(
        "it is installed, and serves",
        concat!(
            "dpkg -i $MEDIA/faasd.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }; ",
            "soon systemctl is-active faasd.service faasd.socket faasd-functions.service; ",
            "systemctl show -P StatusText faasd; getent group faas; ",
            "test \"$(stat -c '%a %U %G' /run/faasd/faasd.sock)\" = '660 root faas'; ",
            "test \"$(stat -c %a /etc/wireguard/server_private.key)\" = 600; ",
            "test \"$(wg pubkey </etc/wireguard/server_private.key)\" = \"$(cat /etc/wireguard/server_public.key)\"; ",
            "test \"$(sysctl -n net.ipv6.conf.all.forwarding)\" = 1; ip -6 route show default proto ra | grep .; ip link del ra0; ",
            "systemd-analyze verify --man=no faasd.service faasd-functions.service faasd-forwarding.service faasd.socket faasd.slice; ",
            "systemd-analyze security --no-pager faasd.service | tail -1",
        ),
    ),
];

/// What is done with it once it is there, however it came.
pub const USED: &[Step] = &[
    Run(
        "functions of both kinds are deployed, each in a control group of its own with its limits",
        concat!(
            "mkdir -p /root/hello /root/server; ",
            "printf 'def handle(event, context):\\n    return \"hello\"\\n' > /root/hello/handler.py; ",
            "printf 'handler = \"handler.py:handle\"\\n[scale]\\nmin = 2\\nmax = 2\\n' > /root/hello/faas.toml; ",
            "printf 'import http.server, os, socket\\nclass H(http.server.BaseHTTPRequestHandler):\\n protocol_version = \"HTTP/1.1\"\\n def do_GET(self):\\n  self.send_response(200); self.send_header(\"content-length\", \"6\"); self.end_headers(); self.wfile.write(b\"server\")\\n def log_message(self, *a): pass\\nclass S(http.server.ThreadingHTTPServer):\\n address_family = socket.AF_INET6\\n request_queue_size = 128\\nS((\"::\", int(os.environ[\"PORT\"])), H).serve_forever()\\n' > /root/server/server.py; ",
            "printf 'contract = \"port\"\\ncommand = [\"/usr/bin/python3\", \"server.py\"]\\n[scale]\\nmin = 2\\nmax = 2\\n[deadlines]\\nstart = \"60s\"\\n' > /root/server/faas.toml; ",
            "for f in hello server; do faas deploy $f /root/$f; ",
            "faas describe $f -o json | sed -n 's/.*\"address\": *\"\\([^\"]*\\)\".*/\\1/p' | head -1 > /run/address-$f; done; ",
            "test \"$(faas invoke hello)\" = hello; ",
            "group=/sys/fs/cgroup/faasd.slice/faasd-functions.service; ls -d $group/*/ $group/instances/*/; ",
            "for i in $group/instances/*/; do test $(cat $i/memory.max) = 134217728; done; ",
            "test -n \"$(cat $group/helpers/cgroup.procs)\"; ",
            "test \"$(wc -l < /sys/fs/cgroup/faasd.slice/faasd.service/cgroup.procs)\" = 1",
        ),
    ),
    Run(
        "two commands let a client in that has never seen the server, by the kernel's WireGuard",
        concat!(
            "ip netns add client; ip link add c0 type veth peer name c1 netns client; ",
            "ip addr add fd00:99::1/64 dev c0 nodad; ip link set c0 up; ",
            "ip -n client addr add fd00:99::2/64 dev c1 nodad; ip -n client link set c1 up; ip -n client link set lo up; ",
            "mkdir -p /etc/netns/client; touch /etc/netns/client/resolv.conf; ",
            "client faas vpn connect \"$(faas vpn invite laptop --endpoint '[fd00:99::1]:51820')\"; ",
            // Who resolves names for the machine does not know the namespace's links.
            "grep -q nameserver /etc/netns/client/resolv.conf || echo 'nameserver fd00:faa5:0:100::1' > /etc/netns/client/resolv.conf; ",
            "client dig +short AAAA hello.faas | grep ^fd00:faa5:0:200:; ",
            "test \"$(client curl -sS http://hello.faas/)\" = hello; answers hello hello; answers server server; ",
            "faas version -o json | grep -q '\"wireguard\": *\"kernel\"'; ",
            "ip -n client -d link show type wireguard | grep -q faas; faas vpn peers; ",
            // Without root, by the group.
            "useradd --system --groups faas somebody; setpriv --reuid somebody --init-groups faas ls",
        ),
    ),
];

pub const LIVED: &[Step] = &[
    Run(
        "restarts of the daemon under load cost no request",
        concat!(
            "helpers=$(cat /sys/fs/cgroup/faasd.slice/faasd-functions.service/helpers/cgroup.procs); ",
            "twice() { for i in 1 2; do systemctl restart faasd; answers hello hello; sleep 3; done; }; load 80 twice; ",
            "test \"$helpers\" = \"$(cat /sys/fs/cgroup/faasd.slice/faasd-functions.service/helpers/cgroup.procs)\"; ",
            "none sh -c \"journalctl -u 'faasd*' --no-pager | grep -i left-over\"",
        ),
    ),
    Run(
        "an upgrade of the package under load costs no request",
        "upgrade() { dpkg -i $MEDIA/faasd.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }; soon systemctl is-active faasd; }; load 70 upgrade",
    ),
    Run(
        "whoever calls while the daemon restarts waits for it",
        "systemctl restart --no-block faasd; for i in 1 2 3 4 5; do faas ls >/dev/null; done; soon systemctl is-active faasd",
    ),
    Run(
        "a daemon that hangs is replaced by its watchdog",
        concat!(
            "mkdir -p /run/systemd/system/faasd.service.d; printf '[Service]\\nWatchdogSec=6\\n' > /run/systemd/system/faasd.service.d/test.conf; ",
            "systemctl daemon-reload; systemctl restart faasd; pid=$(systemctl show -P MainPID faasd); sleep 8; ",
            "test $pid = $(systemctl show -P MainPID faasd); kill -STOP $pid; answers server server; ",
            "soon test ! -d /proc/$pid; soon systemctl is-active faasd; answers hello hello; ",
            "journalctl -u faasd --no-pager | grep -i 'watchdog timeout'; ",
            "rm -r /run/systemd/system/faasd.service.d; systemctl daemon-reload",
        ),
    ),
    Run(
        "a daemon that is killed comes back",
        concat!(
            "systemctl restart faasd; pid=$(systemctl show -P MainPID faasd); kill -KILL $pid; answers server server; ",
            "soon test \"$pid\" != \"$(systemctl show -P MainPID faasd)\"; soon answers hello hello; soon systemctl is-active faasd",
        ),
    ),
    Run(
        "settings are read again, and what needs a restart is said",
        concat!(
            "cp /etc/faasd/faasd.toml /run/before.toml; ",
            "printf 'endpoint = \"vpn.example.org\"\\nmtu_bytes = 1400\\n' > /etc/faasd/faasd.toml; systemctl reload faasd; ",
            "soon sh -c 'journalctl -u faasd --no-pager | grep mtu_bytes'; soon systemctl is-active faasd; ",
            "faas vpn invite other | grep -q .; cp /run/before.toml /etc/faasd/faasd.toml; systemctl reload faasd",
        ),
    ),
    Run(
        "a stopped daemon leaves everything serving, and a call wakes it",
        concat!(
            "systemctl stop faasd; sleep 1; answers server server; test \"$(systemctl is-active faasd)\" = inactive; ",
            "faas ls; soon systemctl is-active faasd; soon answers hello hello",
        ),
    ),
    Reboot,
    Run(
        "everything is back after a reboot",
        concat!(
            "soon systemctl is-active faasd.service; soon test \"$(faas invoke hello)\" = hello; faas ls; ",
            "faas vpn peers | grep laptop; test \"$(sysctl -n net.ipv6.conf.all.forwarding)\" = 1",
        ),
    ),
    Run(
        "the end of the functions' unit ends everything",
        concat!(
            "systemctl stop faasd-functions.service; test \"$(systemctl is-active faasd faasd.socket | sort -u)\" = inactive; ",
            "test ! -e /sys/fs/bpf/faasd; test ! -e /run/faasd/ingress; none pgrep -ax faasd; test ! -e /run/faasd; ",
            "systemctl start faasd; soon systemctl is-active faasd; soon test \"$(faas invoke hello)\" = hello",
        ),
    ),
    Run(
        "a machine that serves joins as a client, too",
        concat!(
            "cp /etc/resolv.conf /run/resolv.before; faas vpn connect \"$(faas vpn invite itself --endpoint '[::1]:51820')\"; ",
            "test \"$(curl -sS --max-time 60 http://hello.faas/)\" = hello; ip link show type wireguard | grep .; ls /var/lib/faas/*.json",
        ),
    ),
    Run(
        "removal ends everything and keeps data, settings and keys",
        concat!(
            "echo '# edited' >> /etc/faasd/faasd.toml; dpkg -r faasd >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }; ",
            "none systemctl is-active faasd.service faasd.socket faasd-functions.service; none pgrep -ax faasd; ",
            "test ! -e /sys/fs/bpf/faasd; test ! -e /run/faasd; test ! -e /usr/bin/faasd; test ! -e /sys/fs/cgroup/faasd.slice/faasd-functions.service; ",
            "none sh -c 'ip link show type wireguard | grep .'; cmp /etc/resolv.conf /run/resolv.before; ls /var/lib/faas/*.json; ",
            "none grep faasd /proc/self/mountinfo; test -e /var/lib/faasd/faasd.redb; grep -q edited /etc/faasd/faasd.toml; test -e /etc/wireguard/peers",
        ),
    ),
    Run(
        "what comes back finds its functions again",
        concat!(
            "dpkg -i $MEDIA/faasd.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }; grep -q edited /etc/faasd/faasd.toml; ",
            "soon systemctl is-active faasd; soon test \"$(faas invoke hello)\" = hello",
        ),
    ),
];

pub const PURGED: &[Step] = &[Run(
    "a purge leaves the server's keys and nothing else",
    concat!(
        "dpkg -P faasd >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }; none pgrep -ax faasd; ",
        "test ! -e /var/lib/faasd; test ! -e /var/lib/faas; test ! -e /etc/faasd; test ! -e /run/faasd; test ! -e /etc/wireguard/peers; ",
        "test \"$(ls /etc/wireguard)\" = \"$(printf 'server_private.key\\nserver_public.key')\"; ",
        "none sh -c \"find / -xdev -name '*faasd*' -not -path '/run/*' -not -name 'faasd-agent*' -not -name 'faasd-shell*' -not -name '*faasd-vm*' | grep .\"; ",
        "none sh -c \"systemctl list-units --all --no-legend --plain --type=service,socket 'faasd*' | grep -v -e faasd-agent -e faasd-shell\"",
    ),
)];
