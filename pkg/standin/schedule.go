package standin

import (
	"fmt"
	"strings"
	"time"
)

// plan writes the schedule of a run: the events of section "streaming" of the
// Service API reference for the app's mode, paced by the selectors.
func (r *run) plan(sel selectors, turn int) {
	deltas := r.deltas(sel, turn)
	if sel.Error != "" {
		r.failure = errorOfCode(sel.Error)
		deltas = deltas[:min(len(deltas), sel.ErrorAfter)]
	} else if sel.Fail {
		r.failure = errorOfCode("internal_server_error")
		deltas = deltas[:min(len(deltas), sel.ErrorAfter)]
	}

	first, gap := sel.first(), sel.gap()
	r.begin()
	if sel.Pause && r.app.Mode.graph() {
		r.pause(first)
		return
	}
	at := first
	for i, d := range deltas {
		at = first + time.Duration(i)*gap
		r.steps = append(r.steps, step{at: at, delta: d})
	}
	r.finish(at, strings.Join(deltas, ""), len(deltas))
}

// begin schedules what comes before the first delta.
func (r *run) begin() {
	switch r.app.Mode {
	case AgentChat, Agent:
		r.append(0, r.thought(""))
	case Workflow, AdvancedChat:
		r.append(0,
			r.graphEvent("workflow_started", object{{"id", r.runID}, {"workflow_id", r.workflowID}, {"inputs", r.inputs}, {"created_at", r.start.Unix()}, {"reason", "initial"}}),
			r.nodeStarted(startNode, 0), r.nodeFinished(startNode, 0, 0, "", nil, 0),
			r.nodeStarted(llmNode, 0))
	}
}

// finish schedules what comes after the last delta: the one place that decides how
// a run ends, whether it was done, failed or stopped.
func (r *run) finish(at time.Duration, answer string, deltas int) {
	failure := r.failure
	if r.stopped {
		failure = nil
	}
	switch r.app.Mode {
	case Chat, Completion:
		if failure == nil {
			r.append(at, r.messageEnd(at, deltas))
		}
	case AgentChat, Agent:
		if failure == nil {
			r.append(at, r.thought(answer), r.messageEnd(at, deltas))
		}
	case AdvancedChat:
		r.finishNodes(at, answer, deltas, failure)
		if failure == nil {
			r.append(at, r.messageEnd(at, deltas))
		}
		r.append(at, r.workflowFinished(at, answer, deltas))
	case Workflow:
		r.finishNodes(at, answer, deltas, failure)
		r.append(at, r.workflowFinished(at, answer, deltas))
	}
	// A workflow app tells its failure by workflow_finished alone.
	if failure != nil && r.app.Mode != Workflow {
		r.append(at, r.errorEvent(failure))
	}
	r.steps[len(r.steps)-1].last = true
}

func (r *run) finishNodes(at time.Duration, answer string, deltas int, failure *apiError) {
	r.append(at, r.nodeFinished(llmNode, at, at, answer, failure, deltas))
	if failure != nil || r.stopped {
		return
	}
	last := endNode
	if r.app.Mode == AdvancedChat {
		last = answerNode
	}
	r.append(at, r.nodeStarted(last, at), r.nodeFinished(last, at, 0, answer, nil, 0))
}

// deltas makes the text of the answer: it names the instance and the turn, repeats
// the question, and is filled up or cut to the number of deltas asked for.
func (r *run) deltas(sel selectors, turn int) []string {
	var words []string
	if sel.Answer != "" {
		words = splitWords(sel.Answer, max(1, sel.Tokens))
	} else {
		text := fmt.Sprintf("[%s] turn %d, you said: %s", r.server, turn, r.query)
		if r.app.Mode == Workflow || r.app.Mode == Completion && r.query == "" {
			text = fmt.Sprintf("[%s] your inputs: %s", r.server, encodeJSON(withoutSelectors(r.inputs), true))
		}
		words = strings.SplitAfter(text, " ")
		words[len(words)-1] += " "
		for i := 0; len(words) < sel.Tokens; i++ {
			words = append(words, filler[i%len(filler)])
		}
		words = words[:sel.Tokens]
		words[len(words)-1] = strings.TrimSuffix(words[len(words)-1], " ")
	}
	for i, w := range words {
		if n := sel.TokenBytes - len(w); n > 0 {
			words[i] = w + strings.Repeat("x", n)
		}
	}
	return words
}

// splitWords cuts text into at most n pieces that join to it again.
func splitWords(text string, n int) []string {
	words := strings.SplitAfter(text, " ")
	if len(words) > n {
		words = append(words[:n-1:n-1], strings.Join(words[n-1:], ""))
	}
	return words
}

var filler = fillerWords("and this is where a model would go on to say something of use, " +
	"which a stand-in has not got; 平衡 is kept all the same,")

func fillerWords(text string) []string {
	words := strings.Fields(text)
	for i := range words {
		words[i] += " "
	}
	return words
}
