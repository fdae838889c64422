package standin

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// apiError is an answer of the API that is not a success. It travels as a Go
// error from wherever it is found and becomes an envelope in one place.
type apiError struct {
	status  int
	code    string
	message string
	params  string   // name of the offending parameter, if told
	allow   []string // methods, of a 405
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.status, e.code, e.message) }

func (e *apiError) envelope() object {
	o := object{{"code", e.code}, {"message", e.message}, {"status", e.status}}
	if e.params != "" {
		o = o.with(field{"params", e.params})
	}
	return o
}

func invalidParam(format string, args ...any) *apiError {
	return &apiError{status: 400, code: "invalid_param", message: fmt.Sprintf(format, args...)}
}

func badRequest(message string) *apiError {
	return &apiError{status: 400, code: "bad_request", message: message}
}

func notFound(message string) *apiError {
	return &apiError{status: 404, code: "not_found", message: message}
}

func unauthorized(message string) *apiError {
	return &apiError{status: 401, code: "unauthorized", message: message}
}

func methodNotAllowed(allow []string) *apiError {
	return &apiError{status: 405, code: "method_not_allowed", message: "The method is not allowed for the requested URL.", allow: allow}
}

var (
	errNotChat     = &apiError{status: 400, code: "not_chat_app", message: "Please check if your app mode matches the right API route."}
	errNotWorkflow = &apiError{status: 400, code: "not_workflow_app", message: "Please check if your app mode matches the right API route."}
	errUnavailable = &apiError{status: 400, code: "app_unavailable", message: "App unavailable, please check your app configurations."}
	errDisabled    = &apiError{status: 403, code: "forbidden", message: "The app's API service has been disabled."}

	errNoPath = notFound("The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.")

	errConversation     = notFound("Conversation Not Exists.")
	errLastConversation = notFound("Last Conversation Not Exists.")
	errVariable         = notFound("Conversation Variable Not Exists.")
	errMessage          = notFound("Message Not Exists.")
	errFirstMessage     = notFound("First Message Not Exists.")
	errUploadFile       = invalidParam("Invalid upload file")
	errFile             = &apiError{status: 404, code: "file_not_found", message: "The requested file was not found."}
	errFileAccess       = &apiError{status: 403, code: "file_access_denied", message: "Access to the requested file is denied."}
	errFileTooLarge     = &apiError{status: 413, code: "file_too_large", message: "File size exceeded."}
	errRun              = notFound("Workflow run not found.")
	errRunEvents        = notFound("Workflow run not found")
	errForm             = notFound("Form not found")
	errFormSubmitted    = &apiError{status: 412, code: "human_input_form_submitted", message: "This form has already been submitted."}
	errEndUser          = &apiError{status: 404, code: "end_user_not_found", message: "End user not found."}
	errAnnotation       = notFound("Annotation not found")
)

// codeStatus is the HTTP status of the error codes that can be asked for by a
// selector or a fault.
var codeStatus = map[string]int{
	"invalid_param": 400, "bad_request": 400, "app_unavailable": 400, "not_chat_app": 400, "not_workflow_app": 400,
	"not_completion_app": 400, "conversation_completed": 400, "agent_not_published": 400,
	"provider_not_initialize": 400, "provider_quota_exceeded": 400, "model_currently_not_support": 400, "completion_request_error": 400,
	"no_file_uploaded": 400, "too_many_files": 400, "filename_not_exists_error": 400, "file_extension_blocked": 400,
	"unauthorized": 401, "forbidden": 403, "app_api_disabled": 403, "workspace_archived": 403,
	"not_found": 404, "file_not_found": 404, "file_too_large": 413, "unsupported_media_type": 415,
	"too_many_requests": 429, "rate_limit_error": 429, "internal_server_error": 500, "unknown": 500, "pipeline_run_error": 500, "service_unavailable": 503,
}

var codeMessage = map[string]string{
	"provider_not_initialize":     "No valid model provider credentials found. Please go to Settings -> Model Provider to complete your provider credentials.",
	"provider_quota_exceeded":     "Your quota for Dify Hosted Model Provider has been exhausted. Please go to Settings -> Model Provider to complete your own provider credentials.",
	"model_currently_not_support": "Dify Hosted OpenAI trial currently not support the GPT-4 model.",
	"completion_request_error":    "Completion request failed.",
	"internal_server_error":       "Internal Server Error, please contact support.",
	"too_many_requests":           "Too many requests. Please try again later.",
	"rate_limit_error":            "Rate limit exceeded.",
	"invalid_param":               "Invalid parameter.",
	"unauthorized":                "Access token is invalid",
}

// errorOfCode builds the error with that code. An unknown code keeps its name
// and is a 500, as an unexpected exception is.
func errorOfCode(code string) *apiError {
	status, ok := codeStatus[code]
	if !ok {
		status = 500
	}
	message, ok := codeMessage[code]
	if !ok {
		message = "The request was refused: " + strings.ReplaceAll(code, "_", " ") + "."
	}
	return &apiError{status: status, code: code, message: message}
}

// eventError is the form an error takes inside a stream: the five codes Dify
// tells apart, anything else an internal error.
func eventError(code string) *apiError {
	switch code {
	case "invalid_param", "provider_not_initialize", "provider_quota_exceeded", "model_currently_not_support", "completion_request_error":
		return errorOfCode(code)
	}
	return errorOfCode("internal_server_error")
}

// writeStatus writes the answer a deployment gives with that status: HTML where
// nginx makes it, the envelope where the API does.
func (s *Server) writeStatus(w http.ResponseWriter, status int) {
	if status == 502 || status == 504 || s.opts.Front == Nginx && status == 503 {
		writeHTML(w, s.opts.Front, status)
		return
	}
	e := &apiError{status: status, code: snakeCase(http.StatusText(status)), message: http.StatusText(status)}
	switch e.code {
	case "too_many_requests", "internal_server_error", "unauthorized":
		e = errorOfCode(e.code)
	}
	s.writeError(w, e)
}

func (s *Server) writeError(w http.ResponseWriter, e *apiError) {
	if e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="api"`)
	}
	if len(e.allow) > 0 {
		w.Header().Set("Allow", strings.Join(e.allow, ", "))
	}
	s.writeJSON(w, e.status, e.envelope())
}

func (s *Server) writeJSON(w http.ResponseWriter, status int, v any) {
	body := append(encodeJSON(v, s.opts.SpacedJSON), '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// writeHTML writes an error page of nginx, or of the framework where no nginx is.
// Neither bears the headers of the API.
func writeHTML(w http.ResponseWriter, front Front, status int) {
	h := w.Header()
	h.Del("X-Version")
	h.Del("X-Env")
	text := http.StatusText(status)
	if status == http.StatusGatewayTimeout {
		text = "Gateway Time-out"
	}
	page := fmt.Sprintf("<html>\r\n<head><title>%d %s</title></head>\r\n<body>\r\n<center><h1>%d %s</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n", status, text, status, text)
	if front == Direct && status == http.StatusNotFound {
		page = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n<p>The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.</p>\n"
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(page)))
	w.WriteHeader(status)
	w.Write([]byte(page))
}

func snakeCase(s string) string {
	return strings.ReplaceAll(strings.ToLower(s), " ", "_")
}
