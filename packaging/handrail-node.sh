package=handrail-node unit=handrail-node.service data=/var/lib/handrail
next="handrail-node join, then: systemctl enable --now handrail-node"

# The node that runs becomes the newer program, and its sessions go on.
newer() {
	[ -S "$root$data/run/node.sock" ] || return 0
	"$root/usr/bin/handrail-node" upgrade --data "$root$data" ||
		echo "$package: the node goes on as the older program until: systemctl restart $unit  (ends its sessions)"
}
