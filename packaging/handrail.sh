package=handrail unit=handrail-server.service data=/var/lib/handrail-server
next="for a server: cp /usr/share/handrail/handrail.toml /etc/handrail/ && systemctl enable --now handrail-server"

# A restart ends the sessions, so when is for a person to say.
newer() {
	if alive && systemctl --quiet is-active "$unit"; then
		echo "$package: the server goes on as the older program until: systemctl restart $unit"
	fi
}
