package cli

import (
	"crypto/rand"
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

// An inventory of Ansible (its plugin "yaml", which reads JSON too). Ansible
// reaches each host through the gateway with the ssh config that login wrote,
// and its own connection sharing.
type (
	inventory struct {
		All inventoryGroup `json:"all"`
	}
	inventoryGroup struct {
		Hosts    map[string]struct{}       `json:"hosts,omitempty"`
		Vars     map[string]any            `json:"vars,omitempty"`
		Children map[string]inventoryGroup `json:"children,omitempty"`
	}
)

func (t *tool) hostAnsibleCommand() *cobra.Command {
	c := t.command("ansible [SELECTOR]", "Print an inventory for Ansible",
		"handrail host ansible > hosts.yml             # then: ansible -i hosts.yml all -m setup\nansible-playbook -i hosts.yml -e handrail_write=true site.yml  # with a grant of yours",
		nil,
		func(cmd *cobra.Command, args []string) error {
			f, err := t.folder()
			if err != nil {
				return err
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.hosts.List(cmd.Context(), &v1.ListHostsRequest{Selector: strings.Join(args, " ")})
			if err != nil {
				return err
			}
			if len(answer.Hosts) == 0 {
				t.say("No host matches, so the inventory is empty. See: handrail hosts")
			}
			raw, err := json.MarshalIndent(inventoryOf(answer.Hosts, f.path(fileSSH), rand.Text()), "", "  ")
			if err != nil {
				return err
			}
			_, err = t.out().Write(append(raw, '\n'))
			return err
		})
	c.ValidArgsFunction = t.completeHosts
	return c
}

// inventoryOf groups hosts by environment, scope and service. config is the
// ssh config of this login. unguessable ends the name of the folder that the
// write sessions of one playbook share: the home of each is its own and ends
// with it, and a name in /var/tmp that others can foretell is one that they can
// take first.
func inventoryOf(hosts []*v1.Host, config, unguessable string) inventory {
	all := inventoryGroup{Hosts: map[string]struct{}{}, Children: map[string]inventoryGroup{}, Vars: map[string]any{
		"ansible_host":            gatewayAlias,
		"ansible_user":            "{{ inventory_hostname }}{{ '+write' if handrail_write | default(false) | bool else '' }}",
		"ansible_ssh_common_args": "-F " + quoteShell(config),
		"ansible_pipelining":      true, // modules come by standard input: a read session keeps no file for the next one
		"ansible_remote_tmp":      "/var/tmp/ansible-" + strings.ToLower(unguessable),
	}}
	for _, h := range hosts {
		all.Hosts[h.Name] = struct{}{}
		groups := []string{"env_" + h.Environment, "scope_" + h.Scope}
		for _, s := range h.Services {
			groups = append(groups, "service_"+s)
		}
		for _, name := range groups {
			name = groupName(name)
			if all.Children[name].Hosts == nil {
				all.Children[name] = inventoryGroup{Hosts: map[string]struct{}{}}
			}
			all.Children[name].Hosts[h.Name] = struct{}{}
		}
	}
	return inventory{All: all}
}

// groupName is a name that Ansible takes for a group: a Python identifier.
func groupName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, s)
}
