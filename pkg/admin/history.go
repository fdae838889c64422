package admin

import (
	"net/http"

	"difylb/pkg/store"
)

func (s *Server) history(w http.ResponseWriter, r *http.Request, q *query) error {
	limit := q.number("limit", 50, 1, 1000)
	before := q.number("before", 0, 0, 1<<62)
	if err := q.err(); err != nil {
		return err
	}
	entries, err := s.store.History(r.Context(), int(limit), before)
	if err != nil {
		return err
	}
	out := List[HistoryEntry]{Items: make([]HistoryEntry, len(entries))}
	for i, e := range entries {
		out.Items[i] = viewEntry(e, false)
	}
	return answer(w, http.StatusOK, out)
}

func (s *Server) historyAt(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	revision, err := revisionOf(r)
	if err != nil {
		return err
	}
	e, err := s.store.HistoryAt(r.Context(), revision)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, viewEntry(e, true))
}

func viewEntry(e store.HistoryEntry, full bool) HistoryEntry {
	return HistoryEntry{
		Revision: e.Revision, Time: e.At, Who: e.Who, From: e.From, Action: e.Action, Note: e.Note,
		Count: e.Count, Changes: changesOf(e.Changes, full),
	}
}
