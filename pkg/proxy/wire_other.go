//go:build !linux || portable

package proxy

// initRaw leaves reading and writing to the connection.
func (w *wire) initRaw() {}

func (w *wire) readRaw([]byte) (int, error)  { panic("proxy: no raw connections here") }
func (w *wire) writeRaw([]byte) (int, error) { panic("proxy: no raw connections here") }
