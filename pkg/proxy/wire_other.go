//go:build !linux || portable

package proxy

import "os"

// errDeadline is what an interrupted wait returns.
var errDeadline = os.ErrDeadlineExceeded

// initRaw leaves reading and writing to the connection.
func (w *wire) initRaw() {}

func (w *wire) readRaw([]byte) (int, error)  { panic("proxy: no raw connections here") }
func (w *wire) writeRaw([]byte) (int, error) { panic("proxy: no raw connections here") }

// silent reports whether an idle connection is as it should be: open, with
// nothing to read.
func (w *wire) silent() bool {
	switch {
	case w.hup.Load():
		return false
	case w.conn != w.tcp:
		return w.silentTLS()
	}
	return silentConn(w.tcp, false)
}
