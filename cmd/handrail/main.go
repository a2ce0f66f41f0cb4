// Command handrail is the server, the node and the command line in one binary.
// This file only composes: the roles of package app beside the commands of
// package cli.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"handrail.dev/handrail/internal/app"
	"handrail.dev/handrail/internal/host/keeper"
	"handrail.dev/handrail/internal/host/lab"
	"handrail.dev/handrail/internal/host/role"
	"handrail.dev/handrail/internal/host/sandbox/attack"
	"handrail.dev/handrail/internal/surface/cli"
)

// version is set at the release build.
var version = "0.1.0-dev"

func main() {
	role.Main()   // returns unless this process was started to become a role
	keeper.Main() // or to hold a session
	lab.Main()    // or to be a lab host
	attack.Main() // or to be a probe of the attack suite
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	root := cli.New(cli.Deps{Roles: app.Commands(version), Version: version, LocalToken: app.LocalToken, LocalVerify: app.LocalVerify, LocalDirectory: app.LocalDirectory, Ceremony: app.VoucherCommands(), Manual: app.Manual()})
	code := cli.Execute(ctx, root)
	stop()
	os.Exit(code)
}
