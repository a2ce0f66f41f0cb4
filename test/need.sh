#!/usr/bin/env bash
# Installs what the tests need from Debian's packages and npm, where it may,
# or says in one line what is missing: tests that need it then skip and say so.
set -u
cd "$(dirname "$0")/.."
declare -A need=(
	[ssh]=openssh-client [/usr/sbin/sshd]=openssh-server [/usr/lib/openssh/sftp-server]=openssh-sftp-server
	[rsync]=rsync [git]=git [less]=less [ip]=iproute2 [ps]=procps [sudo]=sudo [chromium]=chromium
	[/usr/lib/postgresql/15/bin/postgres]=postgresql-15
	[/usr/sbin/slapd]=slapd [gdb]=gdb [mandoc]=mandoc [systemd-analyze]=systemd [rpmbuild]=rpm [ansible-playbook]=ansible-core [zsh]=zsh [fish]=fish
)
missing=()
for probe in "${!need[@]}"; do
	[[ -x $probe ]] || command -v "$probe" >/dev/null 2>&1 || missing+=("${need[$probe]}")
done
if ((${#missing[@]})); then
	if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
		echo "installing for the tests: ${missing[*]}"
		log=$(mktemp)
		if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
			echo "could not install ${missing[*]} (see $log): tests that need them skip"
		fi
	else
		echo "missing for some tests, which skip: ${missing[*]}  (as root: apt-get install ${missing[*]})"
	fi
fi
for from in browser provider outside; do
	[[ -f test/$from/package.json && ! -d test/$from/node_modules ]] || continue
	if command -v npm >/dev/null; then
		(cd "test/$from" && npm install --no-audit --no-fund --silent) || echo "npm could not install what test/$from needs: its tests skip"
	else
		echo "npm is missing: the tests of test/$from skip"
	fi
done
# A real S3 server, pinned. It builds once, in about a minute.
s3=v1.8.0
bin=$(go env GOBIN)
bin=${bin:-$(go env GOPATH)/bin}
if ! go version -m "$bin/versitygw" 2>/dev/null | grep -q "versity/versitygw[[:space:]]*$s3"; then
	echo "installing versitygw $s3 for the tests of object storage"
	CGO_ENABLED=0 go install "github.com/versity/versitygw/cmd/versitygw@$s3" >/dev/null 2>&1 || echo "could not install versitygw: tests of object storage skip"
fi
exit 0
