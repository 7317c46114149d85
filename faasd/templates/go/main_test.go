package main

import (
	"net/http/httptest"
	"testing"
)

func TestItGreets(t *testing.T) {
	answer := httptest.NewRecorder()
	greet(answer, httptest.NewRequest("GET", "/?name=you", nil))
	if answer.Body.String() != "hello, you\n" {
		t.Errorf("%q", answer.Body)
	}
}
