#!/usr/bin/env bash
# Builds the packages of what `make build` made: build.sh BIN OUT. The same commit
# gives the same bytes. VERSION names a release, FORMATS is "deb rpm".
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC
here=$(cd "$(dirname "$0")" && pwd)
bin=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct)}
# Between releases the time of the commit says which is newer; ~ is before the release.
next=$(sed -n 's/^var version = "\([0-9.]*\).*/\1/p' "$here/../cmd/handrail/main.go")
version=${VERSION:-$next~$(date -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac

declare -A about=(
	[handrail]="production, read-only at once, written to by a deliberate jump"
	[handrail-node]="the node of a host that is reached through handrail"
)
long="Developers and operators share production, safely: everyone reads at once, who
must write asks, a second person agrees, and a ledger proves who did what."

put() { install -D -m "$1" "$2" "$tree$3"; }

# tree NAME FORMAT: everything that is installed. Its times are now, which both tools
# take back to SOURCE_DATE_EPOCH.
tree() {
	local name=$1 page dir
	tree=$work/$2/$name
	put 755 "$bin/$name" "/usr/bin/$name"
	put 644 "$here/../LICENSE" "/usr/share/doc/$name/copyright"
	put 644 "$here/$name.tmpfiles" "/usr/lib/tmpfiles.d/$name.conf"
	if [[ $name == handrail-node ]]; then
		put 644 "$here/handrail-node.service" /usr/lib/systemd/system/handrail-node.service
		return
	fi
	put 644 "$here/handrail-server.service" /usr/lib/systemd/system/handrail-server.service
	put 644 "$here/handrail.sysusers" /usr/lib/sysusers.d/handrail.conf
	put 644 "$here/handrail.toml" /usr/share/handrail/handrail.toml
	"$bin/handrail" man "$work/man" >/dev/null 2>&1
	for page in "$work"/man/*; do
		dir=$tree/usr/share/man/man${page##*.}
		mkdir -p "$dir"
		gzip -9n <"$page" >"$dir/${page##*/}.gz"
	done
	dir=/usr/share/zsh/vendor-completions
	[[ $2 == rpm ]] && dir=/usr/share/zsh/site-functions
	mkdir -p "$tree$dir" "$tree"/usr/share/{bash-completion/completions,fish/vendor_completions.d}
	"$bin/handrail" completion bash >"$tree/usr/share/bash-completion/completions/handrail"
	"$bin/handrail" completion zsh >"$tree$dir/_handrail"
	"$bin/handrail" completion fish >"$tree/usr/share/fish/vendor_completions.d/handrail.fish"
}

around() { cat "$here/$1.sh" "$here/around.sh"; }

deb() {
	local control=$tree/DEBIAN part
	mkdir "$control"
	(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$control/md5sums"
	cat >"$control/control" <<-END
		Package: $1
		Version: $version
		Architecture: $arch
		Maintainer: The handrail maintainers <maintainers@handrail.dev>
		Installed-Size: $(find "$tree/usr" -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
		Recommends: systemd
		Section: admin
		Priority: optional
		Homepage: https://handrail.dev
		Description: ${about[$1]}
		$(sed 's/^/ /' <<<"$long")
	END
	script() { { printf '#!/bin/sh\nset -e\n' && around "$1" && printf '\n%s\n' "$3"; } >"$control/$2" && chmod 755 "$control/$2"; }
	script "$1" postinst 'if [ "$1" = configure ]; then if [ -n "$2" ]; then installed newer; else installed fresh; fi; fi'
	script "$1" prerm 'if [ "$1" = remove ]; then leaving; fi'
	script "$1" postrm 'case $1 in remove) gone ;; purge) kept ;; esac'
	dpkg-deb --root-owner-group --threads-max=1 -Zxz --build "$tree" "$out/$1_${version}_$arch.deb" >/dev/null
}

rpm() {
	local top=$work/top
	{
		cat <<-END
			Name: $1
			Version: $version
			Release: 1
			Summary: ${about[$1]}
			License: Apache-2.0
			URL: https://handrail.dev
			AutoReqProv: no
			%description
			$long
			%install
			mkdir -p %{buildroot}
			cp -a $tree/. %{buildroot}
			%files
			%defattr(-,root,root)
			%dir /usr/share/doc/$1
		END
		[[ $1 == handrail ]] && echo "%dir /usr/share/handrail"
		(cd "$tree" && find . -type f | sort | cut -c2-)
		echo %post
		around "$1"
		echo 'if [ "$1" -gt 1 ]; then installed newer; else installed fresh; fi'
		echo %preun
		around "$1"
		echo 'if [ "$1" = 0 ]; then leaving; fi'
		echo %postun
		around "$1"
		echo 'if [ "$1" = 0 ]; then gone; kept; fi'
	} >"$work/$1.spec"
	# Nothing of the files is touched: what `handrail` carries lies behind its end.
	rpmbuild -bb --quiet --target "$(uname -m)-linux" --buildroot "$work/root" \
		-D "_topdir $top" -D "_rpmdir $out" -D '_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm' \
		-D 'debug_package %{nil}' -D '__os_install_post %{nil}' -D '_build_id_links none' -D '_binary_payload w6.xzdio' \
		-D '_buildhost handrail' -D 'use_source_date_epoch_as_buildtime 1' -D 'clamp_mtime_to_source_date_epoch 1' \
		"$work/$1.spec" >"$work/log" 2>&1 || { cat "$work/log" >&2 && return 1; }
}

for format in ${FORMATS:-deb rpm}; do
	if [[ $format == rpm ]] && ! command -v rpmbuild >/dev/null; then
		echo "no rpm packages: rpmbuild is missing (Debian's package rpm)" >&2
		continue
	fi
	for name in handrail handrail-node; do
		tree "$name" "$format"
		"$format" "$name"
	done
done
(cd "$out" && sha256sum -- *"$version"*)
