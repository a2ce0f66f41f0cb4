package attack

// There is no second gate to the kernel in a 64-bit process here.
func foreignCall() error { return cannotRun{"this architecture has one gate"} }

func ioPorts() error { return cannotRun{"this architecture has no I/O ports"} }

func segmentTable() error { return cannotRun{"this architecture has no segment table"} }
