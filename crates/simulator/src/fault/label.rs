//! A fault as one short line, with the words of a script.

use super::PlatformFault;

impl PlatformFault {
    /// The fault on one short line, with the words of a script.
    pub fn label(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        let mut words = Vec::new();
        for key in ["fault", "to", "how", "code", "hex", "what", "failure", "for", "n", "when", "resuming"] {
            add_words(&mut words, key, &value[key]);
        }
        let mut label = String::new();
        for word in words.iter().filter(|word| *word != "fault" && *word != "to" && *word != "how") {
            label.push_str(if label.is_empty() { "" } else { " " });
            label.push_str(word);
        }
        label
    }
}

/// A member as words: its name and its value. Members that are not set are left out.
fn add_words(words: &mut Vec<String>, key: &str, value: &serde_json::Value) {
    use serde_json::Value;
    let name = |words: &mut Vec<String>| {
        if words.last().is_none_or(|last| last != key) {
            words.push(key.to_owned());
        }
    };
    match value {
        Value::Null | Value::Bool(false) => (),
        Value::Bool(true) => name(words),
        Value::Number(_) => {
            name(words);
            words.push(value.to_string());
        }
        Value::String(text) if text.is_empty() => (),
        Value::String(text) => {
            name(words);
            words.push(text.replace('"', ""));
        }
        Value::Array(elements) => elements.iter().for_each(|element| add_words(words, key, element)),
        Value::Object(members) => {
            name(words);
            members.iter().for_each(|(key, value)| add_words(words, key, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_names_what_is_set_and_nothing_else() {
        for (text, label) in [
            (r#"{"fault":"drop"}"#, "drop"),
            (r#"{"fault":"close","code":1008}"#, "close code 1008"),
            (r#"{"fault":"flood","n":500,"when":"overlap"}"#, "flood n 500 when overlap"),
            (r#"{"fault":"answer","to":"upgrade","how":{"late":{"for":"2s"}}}"#, "answer upgrade late for 2s"),
            (
                r#"{"fault":"answer","to":"rest","how":{"status":{"status":429,"retry_in":2}}}"#,
                "answer rest status retry_in 2 status 429",
            ),
            (
                r#"{"fault":"answer","to":"token","how":{"changed":{"set":"{\"expires_in\":0}"}}}"#,
                "answer token changed set {expires_in:0}",
            ),
        ] {
            assert_eq!(serde_json::from_str::<PlatformFault>(text).unwrap().label(), label);
        }
    }
}
