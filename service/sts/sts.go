// Package sts is the API of AWS STS, as far as lambdad has it: GetCallerIdentity,
// which clients call to find out account and validity of their keys. The other
// operations of the model are answered NotImplemented.
package sts

import (
	"encoding/xml"
	"net/http"
	"slices"
	"strconv"

	"github.com/lambdad/lambdad"
	"github.com/lambdad/lambdad/aws"
)

// A Service is the STS API; it implements aws.Service.
type Service struct{}

// New returns the service.
func New() *Service { return &Service{} }

// Name implements aws.Service.
func (s *Service) Name() string { return "sts" }

// Protocol implements aws.Service.
func (s *Service) Protocol() aws.Protocol { return aws.Query }

// ErrorShapes implements aws.Service.
func (s *Service) ErrorShapes() map[string]aws.ErrorShape { return nil }

// Route implements aws.Service: the operation is in the form.
func (s *Service) Route(*aws.Request) error { return nil }

type callerIdentity struct {
	XMLName xml.Name `xml:"GetCallerIdentityResponse"`
	NS      string   `xml:"xmlns,attr"`
	Result  struct {
		ARN     string `xml:"Arn"`
		UserID  string `xml:"UserId"`
		Account string
	} `xml:"GetCallerIdentityResult"`
	Metadata struct {
		RequestID string `xml:"RequestId"`
	} `xml:"ResponseMetadata"`
}

// ServeAWS implements aws.Service.
func (s *Service) ServeAWS(w http.ResponseWriter, r *aws.Request) error {
	version := r.Form.Get("Version")
	if !slices.Contains(operations, r.Operation) || version != "" && version != apiVersion {
		return lambdad.Errorf("InvalidAction", "Could not find operation %s for version %s", r.Operation, version)
	}
	if r.Operation != "GetCallerIdentity" {
		return lambdad.Errorf("NotImplemented", "lambdad does not offer the operation %s of STS yet.", r.Operation)
	}
	answer := callerIdentity{NS: xmlNamespace}
	answer.Result.ARN, answer.Result.UserID, answer.Result.Account = r.Identity.ARN, r.Identity.UserID, r.Identity.Account
	answer.Metadata.RequestID = r.RequestID
	body, err := xml.Marshal(answer)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // a caller that is gone cannot be told
	return nil
}
