package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (t *tool) serversCommand() *cobra.Command {
	return t.command("servers", "List the servers of this installation",
		"handrail servers          # who serves, how far behind, how many nodes and sessions\nhandrail servers -o wide  # and their addresses",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.servers.List(cmd.Context(), &v1.ListServersRequest{})
			if err != nil {
				return err
			}
			return t.emit(answer, t.serverTable(answer.Servers))
		})
}

func (t *tool) serverTable(servers []*v1.Server) *table {
	tb := &table{
		head: []string{"SERVER", "STATE", "VERSION", "BEHIND", "NODES", "SESSIONS", "SEEN", "ID", "ADDRESS", "SSH", "ADDED"}, wide: 7,
		empty: "This server is the only one. Others need PostgreSQL: handrail server invite NAME",
	}
	for _, s := range servers {
		name := s.Name
		if s.Self {
			name += " (this one)"
		}
		row := cells(name, "", s.Version, fmt.Sprint(s.Behind), fmt.Sprint(s.Nodes), fmt.Sprint(s.Sessions), t.at(s.Seen), s.Id, s.Address, s.SshAddress, t.at(s.Added))
		row[1] = cell{s.State, serverTone[s.State]}
		tb.add(s.Name, row)
	}
	return tb
}

var serverTone = map[string]tone{"active": good, "draining": warn, "away": bad, "asked": warn, "invited": dim}

// serverVerbs are what people do with servers; they stand below the role that
// runs one.
func (t *tool) serverVerbs() []*cobra.Command {
	return []*cobra.Command{t.serverInviteCommand(), t.serverDrainCommand(), t.serverRemoveCommand()}
}

func (t *tool) serverInviteCommand() *cobra.Command {
	return t.command("invite NAME", "Make the token with which another server joins",
		"handrail server invite b            # then, on that machine: handrail server join\nhandrail server invite b -o json    # with \"token\", for a script",
		exactly("the name"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.servers.Invite(cmd.Context(), &v1.InviteServerRequest{Name: args[0]})
			if err != nil {
				return err
			}
			s := &sheet{id: answer.Token}
			s.put("token", answer.Token).put("expires", t.at(answer.Expires))
			s.put("there", "handrail server join --database URL   (paste the token)")
			s.put("then", "somebody else compares its key and agrees: handrail approve ID")
			return t.emit(answer, s)
		})
}

func (t *tool) serverDrainCommand() *cobra.Command {
	var reason string
	var within time.Duration
	c := t.command("drain SERVER", "Let a server take no new session, before it is restarted",
		"handrail server drain b --reason upgrade --within 1h   # its nodes move over; its sessions may go on for an hour\nhandrail servers                                       # how many sessions it still has",
		exactly("the server"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.servers.Drain(cmd.Context(), &v1.DrainServerRequest{Server: args[0], Reason: reason, Within: uint32(min(max(within, 0), 48*time.Hour).Seconds())})
			if err != nil {
				return err
			}
			return t.emit(answer, t.serverTable([]*v1.Server{answer.Server}))
		})
	c.Flags().StringVar(&reason, "reason", "", "what the people in its sessions are told")
	c.Flags().DurationVar(&within, "within", 15*time.Minute, "what still runs then ends")
	return c
}

func (t *tool) serverRemoveCommand() *cobra.Command {
	var reason string
	c := t.command("remove SERVER", "Take a server out of the list for good",
		"handrail server remove b --reason 'machine is gone'   # nodes and servers no longer speak with it\nhandrail servers                                      # who is left",
		exactly("the server"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.servers.Remove(cmd.Context(), &v1.RemoveServerRequest{Server: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return t.emit(answer, t.serverTable([]*v1.Server{answer.Server}))
		})
	c.Flags().StringVar(&reason, "reason", "", "why")
	return c
}

// addServerVerbs puts them below the role's command, wherever it came from.
func (t *tool) addServerVerbs(root *cobra.Command) {
	for _, c := range root.Commands() {
		if c.Name() == "server" {
			c.AddCommand(t.serverVerbs()...)
			return
		}
	}
	t.add(root, "machine", t.group("server", "Run, invite, drain or remove a server",
		"handrail server invite b   # the token with which it joins\nhandrail server drain b    # before it is restarted", t.serverVerbs()...))
}
