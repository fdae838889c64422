package dify

import "strings"

// MaxCodeLength bounds an error code in bytes. A longer one, or one with other bytes than visible ASCII, is none.
const MaxCodeLength = 64

// maxEnvelopeBytes is how far into a body ErrorCode looks. Dify puts the code first; a message may be long.
const maxEnvelopeBytes = 64 << 10

// ErrorCode returns the top-level string "code" of an error body, {"code": …, "message": …, "status": …}, and "" if
// there is none in its first 64 KiB or the body is no JSON object. What stands behind the code does not matter, so that
// the beginning of a body will do. It allocates only for a code that Dify is not known to use.
func ErrorCode(body []byte) string {
	var w Watcher
	w.Reset("application/json", 400, Call{})
	w.Write(body[:min(len(body), maxEnvelopeBytes)])
	w.Close()
	return w.ErrorCode()
}

// Busy says of an answer that the instance refused the request at its own concurrency cap, before anything was
// started: the same request may be sent to another instance, whatever its method. Dify sends no Retry-After with it.
func Busy(status int, code string) bool {
	return status == 429 && code == "too_many_requests"
}

// ProviderFault says of an error that the model behind the instance is at fault: its credentials, its quota, or its
// failure. Dify reports these as if the request were bad (400), and a model's rate limit as 429 rate_limit_error.
// For an error inside a stream ([Watcher.StreamError]) the status is 400, as Dify writes it into such events.
func ProviderFault(status int, code string) bool {
	switch status {
	case 400:
		return code == "completion_request_error" || code == "model_currently_not_support" ||
			strings.HasPrefix(code, "provider_")
	case 429:
		return code == "rate_limit_error"
	}
	return false
}

// TokenRejected says of an answer that the instance does not accept the token it was sent, or not any more: every user
// would get the same. That is 401, and 403 with any code, none included, but those that Dify gives to one request only.
func TokenRejected(status int, code string) bool {
	if status == 403 {
		switch code {
		case "file_access_denied", "app_suggested_questions_after_answer_disabled",
			"workflow_version_execution_not_allowed", "trigger_workflow_service_mode_unavailable":
			return false
		}
		return true
	}
	return status == 401
}

// knownWords are the strings that answers are expected to hold, kept so that finding one costs no allocation.
var knownWords = wordSet(
	"invalid_param", "bad_request", "app_unavailable", "not_chat_app", "not_workflow_app", "not_completion_app",
	"conversation_completed", "agent_not_published", "provider_not_initialize", "provider_quota_exceeded",
	"model_currently_not_support", "completion_request_error", "no_file_uploaded", "too_many_files",
	"filename_not_exists_error", "file_extension_blocked", "no_audio_uploaded", "speech_to_text_disabled",
	"unauthorized", "forbidden", "app_not_found", "app_abnormal_status", "app_api_disabled", "workspace_not_found",
	"workspace_archived", "workflow_version_execution_not_allowed", "trigger_workflow_service_mode_unavailable",
	"app_suggested_questions_after_answer_disabled", "file_access_denied", "not_found", "file_not_found",
	"end_user_not_found", "method_not_allowed", "not_acceptable", "human_input_form_submitted",
	"human_input_form_expired", "file_too_large", "audio_too_large", "unsupported_file_type",
	"unsupported_audio_type", "unsupported_media_type", "too_many_requests", "rate_limit_error",
	"internal_server_error", "unknown", "pipeline_run_error", "service_unavailable",
	"USD", "RMB", "CNY", "EUR", "GBP", "JPY",
)

func wordSet(words ...string) map[string]string {
	set := make(map[string]string, len(words))
	for _, w := range words {
		set[w] = w
	}
	return set
}

func intern(b []byte) string {
	if w, ok := knownWords[string(b)]; ok {
		return w
	}
	return string(b)
}
