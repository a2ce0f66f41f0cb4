package main

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/host/link"
)

const (
	stopTime    = 8 * time.Second
	firstPause  = 100 * time.Millisecond
	longestWait = 10 * time.Second
)

// watch runs both halves as processes of their own until ctx ends. A half that
// dies is started again; the other goes on, and sees it come back.
func watch(ctx context.Context, o options, log *slog.Logger) error {
	if !link.IsJoined(filepath.Join(o.data, "link")) {
		return fault.New(fault.NotFound, "cannot run: this host has not joined an installation").
			WithHint("handrail-node join --data %s", o.data)
	}
	if err := prepare(o.data); err != nil {
		return err
	}
	socket := filepath.Join(o.data, "run", "warden", "warden.sock")
	uid := strconv.Itoa(linkUID())
	halves := []half{
		{name: "warden", args: []string{"warden", "--data", filepath.Join(o.data, "warden"), "--socket", socket, "--link-uid", uid, "--trial=" + strconv.FormatBool(o.trial)}},
		{name: "link", args: []string{"link", "--data", filepath.Join(o.data, "link"), "--socket", socket}, drop: os.Geteuid() == 0},
	}
	var wg sync.WaitGroup
	for _, h := range halves {
		wg.Add(1)
		go func() {
			defer wg.Done()
			h.keep(ctx, log)
		}()
	}
	wg.Wait()
	return nil
}

// half is one of the two processes.
type half struct {
	name string
	args []string
	drop bool // give up root
}

// keep runs the half, again and again, until ctx ends.
func (h half) keep(ctx context.Context, log *slog.Logger) {
	// PDEATHSIG follows the thread that forked, so that thread must stay.
	runtime.LockOSThread()
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := h.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			pause = firstPause
		}
		log.Error("a half of the node ended and is started again", "half", h.name, "error", err, "pause", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longestWait)
	}
}

func (h half) once(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", h.args...)
	cmd.Stderr = os.Stderr
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if h.drop {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: linkAccount, Gid: linkAccount}
	}
	return cmd.Run()
}
