package standin

import (
	"encoding/binary"
	"strconv"
)

const audioToTextLimit = 30 << 20

func (s *Server) serveAudioToText(c *call) error {
	u := c.upload
	switch {
	case u.files == 0 || u.field != "file":
		return &apiError{status: 400, code: "no_audio_uploaded", message: "Please upload your audio."}
	case fileKind(u.mime) != "audio" && fileKind(u.mime) != "video":
		return &apiError{status: 415, code: "unsupported_audio_type", message: "Audio type not allowed."}
	case u.tooLarge || u.size > audioToTextLimit:
		return &apiError{status: 413, code: "audio_too_large", message: "Audio size exceeded."}
	}
	return c.json(200, object{{"text", "[" + s.opts.Name + "] heard " + strconv.FormatInt(u.size, 10) + " bytes of audio"}})
}

// serveTextToAudio answers a second of silence as a WAV file, in pieces and without a length,
// as models do.
func (s *Server) serveTextToAudio(c *call) error {
	id, err := c.str("message_id")
	if err != nil {
		return err
	}
	text, err := c.str("text")
	if err != nil {
		return err
	}
	if id != "" {
		if id, ok := parseUUID(id); !ok {
			return paramError("message_id", "Input should be a valid UUID")
		} else if _, err := s.opts.World.message(id, c); err != nil {
			return err
		}
	} else if text == "" {
		return badRequest("Text is required")
	}
	audio := silence(1)
	c.w.Header().Set("Content-Type", "audio/wav")
	c.w.WriteHeader(200)
	x := c.w.(*exchange)
	for len(audio) > 0 {
		n := min(len(audio), 4096)
		if _, err := x.Write(audio[:n]); err != nil || x.Flush() != nil {
			return nil
		}
		audio = audio[n:]
	}
	return nil
}

// silence is a mono WAV file of 8,000 samples of 8 bits for each second.
func silence(seconds int) []byte {
	const rate = 8000
	n := uint32(rate * seconds)
	b := append([]byte("RIFF"), binary.LittleEndian.AppendUint32(nil, 36+n)...)
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 16)
	b = binary.LittleEndian.AppendUint16(b, 1) // PCM
	b = binary.LittleEndian.AppendUint16(b, 1) // channels
	b = binary.LittleEndian.AppendUint32(b, rate)
	b = binary.LittleEndian.AppendUint32(b, rate) // bytes a second
	b = binary.LittleEndian.AppendUint16(b, 1)    // bytes a frame
	b = binary.LittleEndian.AppendUint16(b, 8)    // bits a sample
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, n)
	for range n {
		b = append(b, 0x80)
	}
	return b
}
