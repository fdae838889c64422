//go:build !linux || portable

package proxy

// haveRaw says whether connections in clear are descriptors of our own. Here
// reading and writing is left to net.Conn.
const haveRaw = false

const noRaw = "proxy: no descriptors of our own here"

func (w *wire) readRaw([]byte) (int, error)  { panic(noRaw) }
func (w *wire) writeRaw([]byte) (int, error) { panic(noRaw) }
func (w *wire) attach() error                { panic(noRaw) }
func (w *wire) closeRaw()                    { panic(noRaw) }
func (w *wire) closeWriteRaw() error         { panic(noRaw) }
func (w *wire) resetOnClose()                { panic(noRaw) }
