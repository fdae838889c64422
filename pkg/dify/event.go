package dify

// kind is a type of event in a stream of Dify's.
type kind uint8

const (
	otherKind kind = iota // not named, or by a name that is not known
	kindPing
	kindMessage
	kindAgentMessage
	kindAgentThought
	kindAgentLog
	kindMessageFile
	kindMessageReplace
	kindMessageEnd
	kindReasoningChunk
	kindTextChunk
	kindTTSMessage
	kindTTSMessageEnd
	kindWorkflowStarted
	kindWorkflowPaused
	kindWorkflowFinished
	kindNodeStarted
	kindNodeFinished
	kindNodeRetry
	kindIterationStarted
	kindIterationNext
	kindIterationCompleted
	kindLoopStarted
	kindLoopNext
	kindLoopCompleted
	kindHumanInputRequired
	kindHumanInputFormFilled
	kindHumanInputFormTimeout
	kindError
)

// maxKindLength is more than the length of every name of an event.
const maxKindLength = 32

func kindOf(name []byte) kind {
	switch string(name) {
	case "ping":
		return kindPing
	case "message":
		return kindMessage
	case "agent_message":
		return kindAgentMessage
	case "agent_thought":
		return kindAgentThought
	case "agent_log":
		return kindAgentLog
	case "message_file":
		return kindMessageFile
	case "message_replace":
		return kindMessageReplace
	case "message_end":
		return kindMessageEnd
	case "reasoning_chunk":
		return kindReasoningChunk
	case "text_chunk":
		return kindTextChunk
	case "tts_message":
		return kindTTSMessage
	case "tts_message_end":
		return kindTTSMessageEnd
	case "workflow_started":
		return kindWorkflowStarted
	case "workflow_paused":
		return kindWorkflowPaused
	case "workflow_finished":
		return kindWorkflowFinished
	case "node_started":
		return kindNodeStarted
	case "node_finished":
		return kindNodeFinished
	case "node_retry":
		return kindNodeRetry
	case "iteration_started":
		return kindIterationStarted
	case "iteration_next":
		return kindIterationNext
	case "iteration_completed":
		return kindIterationCompleted
	case "loop_started":
		return kindLoopStarted
	case "loop_next":
		return kindLoopNext
	case "loop_completed":
		return kindLoopCompleted
	case "human_input_required":
		return kindHumanInputRequired
	case "human_input_form_filled":
		return kindHumanInputFormFilled
	case "human_input_form_timeout":
		return kindHumanInputFormTimeout
	case "error":
		return kindError
	}
	return otherKind
}

// bit is the kind's place in a set of kinds.
func (k kind) bit() uint64 {
	return 1 << k
}

// lastWords are the events after which a stream may well be over. Their order differs between releases, others may
// trail them, and a workflow's stream goes on behind an error.
const lastWords = 1<<kindMessageEnd | 1<<kindTTSMessageEnd | 1<<kindWorkflowFinished | 1<<kindWorkflowPaused | 1<<kindError
