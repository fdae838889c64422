package store

// Step makes Updates end between their steps, as a crash would, when f returns an error.
func (s *Store) Step(f func(step string) error) { s.step = f }

// Keys counts the mirrored keys.
func (s *Store) Keys() int {
	s.st.mu.RLock()
	defer s.st.mu.RUnlock()
	return len(s.st.objects)
}

// WatchVia sends the watch another way than everything else. Call it before Run.
func (s *Store) WatchVia(endpoint string) {
	opt := s.opt
	opt.Endpoints = []string{endpoint}
	s.watchClient.make = dial(opt)
}
