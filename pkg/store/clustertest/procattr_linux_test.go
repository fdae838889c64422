package clustertest

import "syscall"

// diesWithUs has the kernel end the children even where the test is killed.
func diesWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
