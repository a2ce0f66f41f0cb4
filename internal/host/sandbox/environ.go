package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// defaultPath is where programs are looked for.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment sets argv, env and the start directory of the session.
func (s *stage) environment() {
	spec, v := &s.Spec, &s.view
	shell := v.shell()
	env := newEnviron()
	env.set("PATH", defaultPath)
	env.set("HOME", v.home())
	env.set("USER", spec.User)
	env.set("LOGNAME", spec.User)
	env.set("SHELL", shell)
	env.set("LANG", "C.UTF-8")
	if spec.PTY {
		env.set("TERM", or(spec.Term, "xterm-256color"))
	}
	if spec.Level == Read {
		s.readEnvironment(env)
	}
	if dir := v.runDir(); dir != "" {
		for _, name := range [...]string{"XDG_RUNTIME_DIR", "TMUX_TMPDIR", "SCREENDIR"} {
			env.set(name, dir)
		}
	}
	for _, kv := range spec.Env {
		if k, val, ok := strings.Cut(kv, "="); ok && !loaderVariable(k) {
			env.set(k, val)
		}
	}
	s.env = env.list()
	s.dir = or(spec.Dir, v.home())
	s.argv = spec.Command
	if len(s.argv) == 0 {
		s.argv = s.interactive(shell)
		s.path = shell
	} else if !spec.Self {
		s.path = lookPath(s.argv[0], env.get("PATH"))
	}
	// The rest of the environment may have grown by the prompt.
	s.env = append(s.env, s.promptEnv...)
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

// loaderVariable keeps a client from steering the dynamic loader.
func loaderVariable(k string) bool { return strings.HasPrefix(k, "LD_") }

// readEnvironment keeps programs that only read from trying to write beside.
func (s *stage) readEnvironment(env *environ) {
	env.set("GIT_CONFIG_COUNT", "1")
	env.set("GIT_CONFIG_KEY_0", "safe.directory")
	env.set("GIT_CONFIG_VALUE_0", "*")
	env.set("GIT_OPTIONAL_LOCKS", "0")
	env.set("PYTHONDONTWRITEBYTECODE", "1")
	env.set("LESSHISTFILE", "-")
	env.set("TMPDIR", "/tmp")
	env.set("SYSTEMD_PAGERSECURE", "0")
}

// interactive is the argv of a login at a terminal, with the prompt where the
// shell is one whose start can be steered.
func (s *stage) interactive(shell string) []string {
	base := filepath.Base(shell)
	if s.Spec.Prompt == "" {
		return []string{"-" + base}
	}
	s.promptEnv = append(s.promptEnv, "PS1="+s.Spec.Prompt)
	if base != "bash" {
		return []string{"-" + base}
	}
	// bash reads this from a memory file, so that no file of the account is
	// touched; the account's own start files run first, and cannot change the
	// prompt back by setting PS1 once.
	fd, err := unix.MemfdCreate("handrail-prompt", 0)
	if err != nil {
		return []string{"-" + base}
	}
	// High, so that it is not taken for one of the session's own.
	const high = 200
	if unix.Dup3(fd, high, 0) == nil {
		unix.Close(fd)
		fd = high
	}
	if _, err := unix.Pwrite(fd, []byte(bashStart(s.Spec.Level, s.Spec.Prompt, fd)), 0); err != nil {
		return []string{"-" + base}
	}
	return []string{base, "--rcfile", fmt.Sprintf("/proc/self/fd/%d", fd), "-i"}
}

// bashStart is the text that an interactive bash starts with.
func bashStart(level Level, prompt string, fd int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "exec %d<&-\n", fd)
	if level == Write {
		b.WriteString("[ -r /etc/profile ] && . /etc/profile\n" +
			"for f in ~/.bash_profile ~/.bash_login ~/.profile; do [ -r \"$f\" ] && { . \"$f\"; break; }; done; unset f\n")
	} else {
		b.WriteString("HISTFILE=~/.bash_history\nalias ll='ls -l'\n[ -x /usr/bin/dircolors ] && alias ls='ls --color=auto' grep='grep --color=auto'\n")
	}
	fmt.Fprintf(&b, "PS1=%s\nunset PROMPT_COMMAND\n", shellQuote(prompt))
	return b.String()
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// environ keeps variables in the order in which they were first set.
type environ struct {
	names  []string
	values map[string]string
}

func newEnviron() *environ { return &environ{values: map[string]string{}} }

func (e *environ) set(k, v string) {
	if _, ok := e.values[k]; !ok {
		e.names = append(e.names, k)
	}
	e.values[k] = v
}

func (e *environ) get(k string) string { return e.values[k] }

func (e *environ) list() []string {
	l := make([]string, len(e.names))
	for i, k := range e.names {
		l[i] = k + "=" + e.values[k]
	}
	return l
}

// stageEnv is the whole environment of stage 2 itself: no collector runs in
// its short life, and few threads.
func stageEnv() []string {
	env := []string{"GOGC=off", "GOMAXPROCS=2"}
	if d := os.Getenv("GOCOVERDIR"); d != "" {
		env = append(env, "GOCOVERDIR="+d)
	}
	return env
}
