package keeper

import "os/exec"

// Run starts a command from the thread that stays, so that the parent-death
// signal of the child means the warden's death and no thread's.
func (s *Spawner) Run(cmd *exec.Cmd) error {
	errs := make(chan error, 1)
	s.jobs <- func() { errs <- cmd.Start() }
	return <-errs
}
