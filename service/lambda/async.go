package lambda

import (
	"net/http"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
)

// invokeAsync serves InvokeAsync, the old form of Invoke with the type Event: the
// body is the event, the answer a status.
func (s *Service) invokeAsync(c *call, w http.ResponseWriter) error {
	var in InvokeAsyncRequest
	b := aws.NewBinding(c.Request, c.match)
	in.bind(b)
	in.InvokeArgs = []byte{} // the body; none is an event, too
	if err := b.Err(); err != nil {
		return err
	}
	var v aws.Validator
	in.validate(&v)
	if err := v.Err(); err != nil {
		return err
	}
	ref, err := resolveRef(c, *in.FunctionName, nil)
	if err != nil {
		return err
	}
	if c.Oversize {
		return tooLarge(c)
	}
	err = s.Frontend.Event(c.Context(), &lambdad.Invocation{
		Account: ref.account, Region: ref.region, Function: ref.name, Qualifier: ref.qualifier,
		RequestID: c.RequestID, Payload: c.Body, TraceID: c.Header.Get("X-Amzn-Trace-Id"),
	})
	if err != nil {
		return err
	}
	return aws.WriteJSON(w, http.StatusAccepted, struct{ Status int }{http.StatusAccepted})
}
