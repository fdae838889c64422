package limit

import "container/list"

// queue holds waiting requests: a line for each user, and the lines in the order of their turns. Every operation is
// O(1), and memory is in proportion to the most that ever waited at once. The zero value is empty. Not safe for
// concurrent use.
type queue struct {
	len     int
	users   map[string]*line
	turns   list.List // of *line; front is next
	byCount [][]*line // byCount[n] are the lines with n waiters, unordered; the last element is never empty
}

// line is the requests of one user. A line in the queue is never empty.
type line struct {
	user    string
	waiters list.List     // of *waiter; front came first
	turn    *list.Element // in queue.turns
	count   int           // where it stands in queue.byCount, 0 = nowhere
	pos     int           // index in queue.byCount[count]
}

// waiter is one waiting request. Its fate is decided once, after it has left the queue.
type waiter struct {
	line    *line // nil once it has left the queue
	place   *list.Element
	decided chan struct{} // closed by decide
	err     error         // nil: let in; valid once decided is closed
}

func (w *waiter) decide(err error) {
	w.err = err
	close(w.decided)
}

// push adds a request at the end of its user's line; a new line gets the last turn.
func (q *queue) push(user string) *waiter {
	l := q.users[user]
	if l == nil {
		l = &line{user: user}
		l.turn = q.turns.PushBack(l)
		if q.users == nil {
			q.users = make(map[string]*line)
		}
		q.users[user] = l
	}
	w := &waiter{line: l, decided: make(chan struct{})}
	w.place = l.waiters.PushBack(w)
	q.len++
	q.recount(l)
	return w
}

// pop takes out the request whose turn it is. The queue must not be empty.
func (q *queue) pop() *waiter {
	l := q.turns.Front().Value.(*line)
	q.turns.MoveToBack(l.turn)
	w := l.waiters.Front().Value.(*waiter)
	q.remove(w)
	return w
}

// displace takes out the newest request of the longest line if that line stays at least as long as user's line will
// be with one more; otherwise it returns nil.
func (q *queue) displace(user string) *waiter {
	mine := 0
	if l := q.users[user]; l != nil {
		mine = l.count
	}
	longest := len(q.byCount) - 1
	if longest <= mine+1 {
		return nil
	}
	w := q.byCount[longest][0].waiters.Back().Value.(*waiter)
	q.remove(w)
	return w
}

// remove takes a request out, wherever it stands, and its line if it was the last one in it.
func (q *queue) remove(w *waiter) {
	l := w.line
	l.waiters.Remove(w.place)
	w.line, w.place = nil, nil
	q.len--
	if l.waiters.Len() == 0 {
		q.turns.Remove(l.turn)
		delete(q.users, l.user)
	}
	q.recount(l)
}

// recount puts l where it belongs in byCount after its length has changed.
func (q *queue) recount(l *line) {
	if l.count > 0 {
		peers := q.byCount[l.count]
		last := len(peers) - 1
		peers[l.pos] = peers[last]
		peers[l.pos].pos = l.pos
		peers[last] = nil
		q.byCount[l.count] = peers[:last]
	}
	l.count = l.waiters.Len()
	if l.count > 0 {
		for len(q.byCount) <= l.count {
			q.byCount = append(q.byCount, nil)
		}
		l.pos = len(q.byCount[l.count])
		q.byCount[l.count] = append(q.byCount[l.count], l)
	}
	for n := len(q.byCount) - 1; n >= 0 && len(q.byCount[n]) == 0; n-- {
		q.byCount = q.byCount[:n]
	}
}
