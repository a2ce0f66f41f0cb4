// Package sandbox turns a Spec into a confined process.
//
// The caller is the keeper, one process per session. It calls Start, which
// runs this same executable again as *stage 2* in new namespaces. Stage 2
// builds the view of the host (read-only mounts, masks, private tmp and dev),
// gives up its power, reports which floor is in force, and only then becomes
// the shell. Nothing of the person's runs before every layer stands; a layer
// that cannot stand is an error or is named in Ready.Missing, never silent.
//
//	keeper                       stage 2 (locked thread)             shell
//	  Start ── clone(ns, cgroup) ──▶ read Spec from a memfd
//	                                 view: mounts, dev, tmp, masks
//	                                 pty, credentials, rlimits
//	                                 Landlock, seccomp
//	        ◀── Ready, pty, listener ── (socketpair, closed by exec)
//	                                 execve ───────────────────────▶ runs
//
// Enforcement is the kernel's alone. The notifier (first refusal hint) labels
// what the kernel refuses: with a notifier that lets everything continue,
// nothing more is permitted.
//
// What a read session can still do to a host, and is known: reading a named
// pipe takes what was in it; reading costs disk and cache; a copy of a secret
// in a folder that nobody declared stays readable, as far as its mode allows.
// A write session is an account's login: what it starts through another
// daemon (cron, at, a container engine) leaves its cgroup.
package sandbox
