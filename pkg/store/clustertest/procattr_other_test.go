//go:build !linux

package clustertest

import "syscall"

func diesWithUs() *syscall.SysProcAttr { return nil }
