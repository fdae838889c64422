package standin

import (
	"fmt"
	"strconv"
	"time"
)

// eventHead is what every event of the app's mode begins with.
func (r *run) eventHead(name string) object {
	o := object{{"event", name}}
	switch r.app.Mode {
	case Workflow:
		return o.with(field{"workflow_run_id", r.runID}, field{"task_id", r.taskID})
	case Completion:
	default:
		o = o.with(field{"conversation_id", r.conversationID})
	}
	return o.with(field{"message_id", r.messageID}, field{"created_at", r.start.Unix()}, field{"task_id", r.taskID})
}

// graphEvent is an event of a workflow run: chatflows tell both their message and their run.
func (r *run) graphEvent(name string, data object) object {
	o := r.eventHead(name)
	if r.app.Mode == AdvancedChat {
		o = o.with(field{"workflow_run_id", r.runID})
	}
	return o.with(field{"data", data})
}

// deltaEvent carries a piece of the answer.
func (r *run) deltaEvent(text string) object {
	switch r.app.Mode {
	case Workflow:
		return r.eventHead("text_chunk").with(field{"data", object{{"text", text}, {"from_variable_selector", []string{llmNode.id, "text"}}}})
	case AgentChat, Agent:
		return r.eventHead("agent_message").with(field{"id", r.messageID}, field{"answer", text})
	case AdvancedChat:
		return r.eventHead("message").with(field{"id", r.messageID}, field{"answer", text}, field{"from_variable_selector", []string{llmNode.id, "text"}})
	}
	return r.eventHead("message").with(field{"id", r.messageID}, field{"answer", text}, field{"from_variable_selector", nil})
}

func (r *run) thought(text string) object {
	return r.eventHead("agent_thought").with(
		field{"id", derivedID("thought", r.messageID)}, field{"position", 1}, field{"thought", text}, field{"observation", ""},
		field{"tool", ""}, field{"tool_labels", object{}}, field{"tool_input", ""}, field{"message_files", []string{}})
}

func (r *run) messageEnd(at time.Duration, deltas int) object {
	return r.eventHead("message_end").with(field{"id", r.messageID}, field{"metadata", r.metadata(at, deltas)}, field{"files", []string{}})
}

func (r *run) metadata(at time.Duration, deltas int) object {
	return object{{"annotation_reply", nil}, {"retriever_resources", []string{}}, {"usage", r.usage(at, deltas)}}
}

// errorEvent lacks the task id, as that of Dify does.
func (r *run) errorEvent(e *apiError) object {
	in := eventError(e.code)
	o := object{{"event", "error"}}
	if r.app.Mode.chatFamily() {
		o = o.with(field{"conversation_id", r.conversationID})
	}
	if r.app.Mode != Workflow {
		o = o.with(field{"message_id", r.messageID}, field{"created_at", r.start.Unix()})
	}
	return o.with(in.envelope()...)
}

// The price of one token in millionths of a dollar.
const (
	promptMicros     = 2
	completionMicros = 8
)

// usage counts tokens as integers and money as decimal strings.
func (r *run) usage(at time.Duration, deltas int) object {
	return object{
		{"prompt_tokens", r.promptTokens}, {"prompt_unit_price", "2"}, {"prompt_price_unit", "0.000001"}, {"prompt_price", dollars(r.promptTokens * promptMicros)},
		{"completion_tokens", deltas}, {"completion_unit_price", "8"}, {"completion_price_unit", "0.000001"}, {"completion_price", dollars(deltas * completionMicros)},
		{"total_tokens", r.promptTokens + deltas}, {"total_price", r.price(deltas)}, {"currency", "USD"}, {"latency", seconds(at)},
	}
}

func (r *run) price(deltas int) string {
	return dollars(r.promptTokens*promptMicros + deltas*completionMicros)
}

func dollars(micros int) string { return fmt.Sprintf("%d.%06d", micros/1_000_000, micros%1_000_000) }

// seconds keeps a point in whole numbers, as Python does.
func seconds(d time.Duration) rawNumber {
	return rawNumber(strconv.FormatFloat(d.Seconds(), 'f', 6, 64))
}

// rawNumber is written as it is.
type rawNumber string

func (n rawNumber) MarshalJSON() ([]byte, error) { return []byte(n), nil }

// node is one node of the graph every chatflow and workflow of a stand-in has:
// start, model, and an end that repeats the model's text.
type node struct {
	id, kind, title, before string
	index                   int
}

var (
	startNode  = node{id: "1700000000001", kind: "start", title: "Start", index: 1}
	llmNode    = node{id: "1700000000002", kind: "llm", title: "Model", before: startNode.id, index: 2}
	humanNode  = node{id: "1700000000002", kind: "human-input", title: "Ask a person", before: startNode.id, index: 2}
	endNode    = node{id: "1700000000003", kind: "end", title: "End", before: llmNode.id, index: 3}
	answerNode = node{id: "1700000000003", kind: "answer", title: "Answer", before: llmNode.id, index: 3}
)

func (r *run) nodeHead(n node, at time.Duration) object {
	var before any
	if n.before != "" {
		before = n.before
	}
	return object{
		{"id", derivedID(r.runID, n.id)}, {"node_id", n.id}, {"node_type", n.kind}, {"title", n.title}, {"index", n.index}, {"predecessor_node_id", before},
		{"inputs", r.inputs}, {"created_at", r.start.Add(at).Unix()}, {"extras", object{}}, {"iteration_id", nil}, {"loop_id", nil},
	}
}

func (r *run) nodeStarted(n node, at time.Duration) object {
	return r.graphEvent("node_started", r.nodeHead(n, at))
}

func (r *run) nodeFinished(n node, at, took time.Duration, text string, failure *apiError, deltas int) object {
	status, outputs := "succeeded", object{}
	var cause, execution any
	switch {
	case failure != nil:
		status, cause = "failed", failure.message
	case r.stopped:
		status, cause = "stopped", "Workflow stopped"
	case n.kind == "answer":
		outputs = object{{"answer", text}}
	case n.kind != "start":
		outputs = object{{"text", text}}
	}
	if n.kind == "llm" {
		execution = object{{"total_tokens", r.promptTokens + deltas}, {"total_price", r.price(deltas)}, {"currency", "USD"}}
	}
	return r.graphEvent("node_finished", r.nodeHead(n, at-took).with(
		field{"process_data", nil}, field{"outputs", outputs}, field{"status", status}, field{"error", cause}, field{"elapsed_time", seconds(took)},
		field{"execution_metadata", execution}, field{"finished_at", r.start.Add(at).Unix()}, field{"files", []string{}}))
}

func (r *run) workflowFinished(at time.Duration, answer string, deltas int) object {
	status := "succeeded"
	switch {
	case r.stopped:
		status = "stopped"
	case r.failure != nil:
		status = "failed"
	}
	return r.graphEvent("workflow_finished", r.result(at, status, answer, deltas).with(
		field{"created_by", object{{"id", r.user.id}, {"user", r.user.name}}}, field{"exceptions_count", 0}, field{"files", []string{}}))
}

// result is the outcome of a workflow run, as told by workflow_finished and by blocking calls.
func (r *run) result(at time.Duration, status, answer string, deltas int) object {
	outputs, steps := object{}, 2
	var cause any
	switch status {
	case "succeeded":
		steps = 3
		if r.app.Mode == AdvancedChat {
			outputs = object{{"answer", answer}}
		} else {
			outputs = object{{"text", answer}}
		}
	case "failed":
		cause = r.failure.message
	case "stopped":
		cause = "Workflow stopped"
	}
	return object{
		{"id", r.runID}, {"workflow_id", r.workflowID}, {"status", status}, {"outputs", outputs}, {"error", cause}, {"elapsed_time", seconds(at)},
		{"total_tokens", r.promptTokens + deltas}, {"total_steps", steps}, {"created_at", r.start.Unix()}, {"finished_at", r.start.Add(at).Unix()},
	}
}
