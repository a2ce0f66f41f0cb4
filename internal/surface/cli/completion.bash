
# What follows stands in for the package bash-completion where that is missing:
# it joins again what bash split at "=" and ":", and completes names of files.
__handrail_init_completion()
{
    COMPREPLY=()
    if declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
        _get_comp_words_by_ref "$@" cur prev words cword
        return
    fi
    local i word line=${COMP_LINE#*"${COMP_WORDS[0]}"}
    words=("${COMP_WORDS[0]}") cword=0
    for ((i = 1; i < ${#COMP_WORDS[@]}; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $line != [[:space:]]* && ( $word == [=:]* || ${COMP_WORDS[i-1]} == *[=:] ) ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        line=${line#*"$word"}
        if ((i == COMP_CWORD)); then
            cword=$((${#words[@]} - 1))
        fi
    done
    cur=${words[cword]}
    prev=
    if ((cword > 0)); then
        prev=${words[cword-1]}
    fi
}

declare -F _filedir >/dev/null 2>&1 || _filedir()
{
    local IFS=$'\n' kind=-f
    if [[ ${1-} == -d ]]; then
        kind=-d
    fi
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen "$kind" -- "$cur"))
}
