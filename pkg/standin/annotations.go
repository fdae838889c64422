package standin

import (
	"net/http"
	"time"
)

type annotation struct {
	id, appID        string
	question, answer string // guarded by World.mu
	created          time.Time
}

func (a *annotation) bodyLocked() object {
	return object{{"id", a.id}, {"question", a.question}, {"answer", a.answer}, {"hit_count", 0}, {"created_at", a.created.Unix()}}
}

func (s *Server) serveAnnotations(c *call) error {
	q := c.r.URL.Query()
	page, err := intParam(q.Get("page"), 1, 1, 99999, "page")
	if err != nil {
		return err
	}
	limit, err := intParam(q.Get("limit"), 20, 1, 100, "limit")
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		data, total := []any{}, 0
		w.annotations.newestFirst(func(a *annotation) bool {
			if a.appID == c.app.ID {
				if total >= (page-1)*limit && len(data) < limit {
					data = append(data, a.bodyLocked())
				}
				total++
			}
			return true
		})
		return object{{"page", page}, {"limit", limit}, {"total", total}, {"has_more", page*limit < total}, {"data", data}}, nil
	})
}

// questionAndAnswer reads the body of a new or changed annotation.
func (c *call) questionAndAnswer() (question, answer string, err error) {
	if err = c.readJSON(); err != nil {
		return "", "", err
	}
	if question, err = c.str("question"); err != nil {
		return "", "", err
	}
	if answer, err = c.str("answer"); err != nil {
		return "", "", err
	}
	if question == "" || answer == "" {
		return "", "", invalidParam("question and answer are required")
	}
	return question, answer, nil
}

func (s *Server) addAnnotation(c *call) error {
	question, answer, err := c.questionAndAnswer()
	if err != nil {
		return err
	}
	a := &annotation{id: newID(), appID: c.app.ID, question: question, answer: answer, created: time.Now()}
	return c.locked(http.StatusCreated, func(w *World) (object, error) {
		w.annotations.put(a.id, a)
		return a.bodyLocked(), nil
	})
}

func (s *Server) setAnnotation(c *call) error {
	question, answer, err := c.questionAndAnswer()
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		a, ok := w.annotations.get(c.param("annotation"))
		if !ok || a.appID != c.app.ID {
			return nil, errAnnotation
		}
		a.question, a.answer = question, answer
		return a.bodyLocked(), nil
	})
}

func (s *Server) deleteAnnotation(c *call) error {
	w := s.opts.World
	w.mu.Lock()
	a, ok := w.annotations.get(c.param("annotation"))
	ok = ok && a.appID == c.app.ID
	if ok {
		w.annotations.remove(a.id)
	}
	w.mu.Unlock()
	if !ok {
		return errAnnotation
	}
	return c.noContent()
}

func (s *Server) startAnnotationJob(c *call) error {
	action := c.param("action")
	if action != "enable" && action != "disable" {
		return errNoPath
	}
	id := newID()
	w := s.opts.World
	w.mu.Lock()
	w.jobs.put(id, action)
	w.mu.Unlock()
	return c.json(200, object{{"job_id", id}, {"job_status", "waiting"}})
}

func (s *Server) serveAnnotationJob(c *call) error {
	w := s.opts.World
	w.mu.Lock()
	action, ok := w.jobs.get(c.param("job"))
	w.mu.Unlock()
	if !ok || action != c.param("action") {
		return invalidParam("The job does not exist.")
	}
	return c.json(200, object{{"job_id", c.param("job")}, {"job_status", "completed"}, {"error_msg", ""}})
}
