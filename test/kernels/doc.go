// Package kernels runs the sandbox and the whole of handrail under other Linux
// kernels than this machine's: real ones, each in a virtual machine without
// hardware support, with a root of little more than busybox, without PAM and
// systemd. Each machine has the cgroup layout, Landlock or none, the process
// list and the root that its test asks for. What the attack suite gets through
// must be what attack.Residue says, neither more nor less.
//
// A machine's time is counted in its instructions, so that bounds of the product
// hold there whatever else this one does.
//
//	make test-kernels KERNELS=DIR     every DIR/vmlinuz*; without, those that apt has
//
// The test's program is the first process of the machine, too; see TestMain.
package kernels
