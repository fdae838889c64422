//go:build !linux || portable

package proxy

// spliceRest carries nothing here: done is false.
func (s *sender) spliceRest() (moved int64, done bool, err error) { return 0, false, nil }
