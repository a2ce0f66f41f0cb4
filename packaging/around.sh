# What happens on the machine around an installation. dpkg's and rpm's scripts say
# when; above stand package, unit, data and next, of which this is the same for both.
# DPKG_ROOT is another root than this machine's, in which nothing runs under systemd.
root=${DPKG_ROOT:-}
alive() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

installed() { # fresh or newer
	if command -v systemd-sysusers >/dev/null && [ -e "$root/usr/lib/sysusers.d/$package.conf" ]; then
		systemd-sysusers ${root:+--root="$root"} "$package.conf"
	fi
	if command -v systemd-tmpfiles >/dev/null; then
		systemd-tmpfiles ${root:+--root="$root"} --create "$package.conf"
	fi
	if alive; then systemctl daemon-reload || true; fi
	if [ "$1" = fresh ]; then echo "$package: next: $next"; else newer; fi
}

leaving() {
	if alive; then systemctl disable --now "$unit" || true; fi
}

gone() {
	if alive; then systemctl daemon-reload || true; fi
}

kept() { echo "$package: $data is kept; remove it when nobody needs its ledger and keys any more"; }
