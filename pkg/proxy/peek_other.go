//go:build !unix

package proxy

import "net"

// silentConn can't be asked here: a connection that was closed meanwhile is
// found out when it is used.
func silentConn(net.Conn, bool) bool { return true }

func silentFD(int, bool) bool { return true }
