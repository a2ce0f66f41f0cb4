# Runs the packages' units under a real systemd: PID 1 of namespaces of its own,
# on an overlay of this machine's root, with nothing else of its units.
#   systemd.sh DIR PROGRAM PACKAGING   writes what was seen to DIR/seen
set -eu
dir=$1 program=$2 packaging=$3
mount --make-rprivate /
ip link set lo up
mount -t tmpfs none "$dir/over"
mkdir "$dir/over/up" "$dir/over/work" "$dir/over/root"
mount -t overlay none -o "lowerdir=/,upperdir=$dir/over/up,workdir=$dir/over/work" "$dir/over/root"
install -m 755 "$program" "$dir/over/root/usr/bin/handrail"
units=$dir/over/root/etc/systemd/system
rm -rf "$units"/*.wants "$units"/*.requires
cp "$packaging/handrail-server.service" "$packaging/handrail-node.service" "$units"
cd "$dir/over/root"
mkdir -p seen && mount --bind "$dir" seen
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs var/lib
for u in systemd-udevd.service systemd-udev-trigger.service systemd-networkd.service systemd-resolved.service \
	systemd-timesyncd.service systemd-tmpfiles-setup-dev.service systemd-modules-load.service systemd-sysctl.service \
	systemd-remount-fs.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-logind.service \
	systemd-random-seed.service systemd-machine-id-commit.service systemd-firstboot.service apparmor.service \
	sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount; do
	ln -sf /dev/null "etc/systemd/system/$u"
done
mkdir -p etc/handrail
cat >etc/handrail/handrail.toml <<X
data = "/var/lib/handrail-server"
listen = "127.0.0.1:17780"
ssh-listen = "127.0.0.1:17722"
X
sed -i /^handrail:/d etc/passwd etc/group
echo 'handrail:x:993:993::/nonexistent:/usr/sbin/nologin' >>etc/passwd
echo 'handrail:x:993:' >>etc/group
# The node's own program is handrail's, which does the same.
printf '#!/bin/sh\nexec /usr/bin/handrail node --data /var/lib/handrail --entrance none\n' >usr/bin/handrail-node
chmod 755 usr/bin/handrail-node
cat >etc/systemd/system/look.service <<X
[Unit]
After=handrail-server.service
[Service]
Type=oneshot
StandardOutput=file:/seen/seen
StandardError=file:/seen/errors
ExecStart=/bin/bash /look.sh
X
cat >etc/systemd/system/look.target <<X
[Unit]
Requires=basic.target
Wants=handrail-server.service look.service
X
cat >look.sh <<'X'
say() { echo "$1: $(systemctl show "handrail-$1" -p ActiveState -p SubState -p NRestarts -p Result | sort | tr '\n' ' ')"; }
until_true() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "gave up: $*"; }
export HANDRAIL_HOME=/run/ada
mkdir -p $HANDRAIL_HOME
say server
main=$(systemctl show handrail-server -p MainPID --value)
for p in $main $(pgrep -P "$main"); do
	echo "process: $(grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$p/status | tr -s '\t\n' ' ')"
done
echo "root key: $(stat -c '%u %a' /var/lib/handrail-server/root/root.key)"
handrail login --local --data /var/lib/handrail-server >/dev/null 2>&1 && echo logged in
handrail host invite web-2 --env dev -o name >/run/token 2>/dev/null
handrail join --data /var/lib/handrail --name web-2 --token-file /run/token >/dev/null && echo joined
systemctl start handrail-node && say node
online() { handrail hosts | grep -q 'web-2 *online'; }
until_true online && handrail hosts | grep web-2 | tr -s ' '
kill -9 "$main"
restarted() { [ "$(systemctl show handrail-server -p NRestarts --value)" = 1 ] && systemctl is-active handrail-server; }
until_true restarted
say server
until_true online
handrail ledger verify | head -1
journalctl -u handrail-node -o json --no-pager | grep 'the connection to the server ended' | grep -o '"PRIORITY":"[0-9]"' | sort -u
systemctl stop handrail-node handrail-server
say server
say node
echo done
systemctl --force --force poweroff
X
mkdir old
pivot_root . old
umount -l old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=look.target --log-target=console --show-status=0
