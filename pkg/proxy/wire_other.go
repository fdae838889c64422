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
// nothing to read. Behind TLS bytes may be a session ticket; they are left to its reader.
func (w *wire) silent() bool { return !w.hup.Load() && silentConn(w.tcp, w.conn != w.tcp) }
