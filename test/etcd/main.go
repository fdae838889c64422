// Command etcd is a plain etcd server of the version that go.mod names, for
// tests that need several real processes to kill and to stop. It adds nothing
// to etcd's own main.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
